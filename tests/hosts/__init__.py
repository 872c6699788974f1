"""Several machines on one: hosts in namespaces of their own, each with an sshd."""
