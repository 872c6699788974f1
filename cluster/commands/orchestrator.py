"""`livepeer-ray orchestrator`: a development orchestrator in a process of its own."""

import asyncio
import signal
import sys

from cluster import logs
from cluster.settings import listen_address


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
    host, port = listen_address("--listen", listen)
    logs.configure(as_json=False)
    asyncio.run(_serve(host=host, port=port, secret=secret))
    return 0


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
