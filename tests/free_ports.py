"""Ports for what has to be told where to listen."""

import socket


def free_port() -> int:
    """Returns one on which nothing listens at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
