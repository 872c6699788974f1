"""`livepeer-ray orchestrator`: a development orchestrator in a process of its own."""

import asyncio
import signal
import sys

from cluster import logs
from cluster.errors import ConfigError


def run(*, listen: str, secret: str) -> int:
    """Serves until SIGINT or SIGTERM; says on stdout when it listens.

    Args:
        listen: `HOST:PORT`, `[V6]:PORT`; port 0 takes a free one.
        secret: What workers have to name.

    Returns:
        The exit status.

    Raises:
        ConfigError: for an address that nothing can listen on.
    """
    host, port = _parse_address(listen)
    logs.configure(as_json=False)
    asyncio.run(_serve(host=host, port=port, secret=secret))
    return 0


def _parse_address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"--listen {listen!r} is not HOST:PORT")
    return host, int(port)


async def _serve(*, host: str, port: int, secret: str) -> None:
    # Imported here: the command line must not load a web server to print its help.
    from cluster.loopback import LoopbackOrchestrator

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signal_number, stop.set)
    async with LoopbackOrchestrator(secret=secret, host=host, port=port) as orchestrator:
        sys.stdout.write(
            f"orchestrator listening on {orchestrator.url}"
            f" (certificate sha256 {orchestrator.fingerprint})\n"
        )
        sys.stdout.flush()
        await stop.wait()
