"""What the subcommands of `livepeer-ray` do: one module per subcommand."""
