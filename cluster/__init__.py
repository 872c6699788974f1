"""What makes many replicas one Livepeer AI worker: configuration, capacity, the bridge, the CLI.

Imports `deployments`' schemas and registry; never torch, diffusers or transformers.
"""
