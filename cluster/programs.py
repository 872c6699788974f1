"""Our own programs as processes: what the demo and the benchmarks run around a worker."""

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from cluster.errors import LivepeerRayError


class ProgramFailed(LivepeerRayError):
    """A program did not do what it was started for; the text says which and what."""


async def start(
    *arguments: str,
    log: Path | None,
    stdout: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Process:
    """Starts `livepeer-ray` with these arguments.

    In a session of its own: Ctrl-C in a terminal reaches us alone, who then end our programs
    in order.

    Args:
        arguments: of the command line.
        log: a file for what it says, overwritten; None is our own stderr.
        stdout: as for a subprocess; None lets it go where the log goes.
        environment: in addition to ours.
    """
    with contextlib.ExitStack() as stack:
        said = stack.enter_context(log.open("wb")) if log else None
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cluster.cli", *arguments),
            stdout=said if stdout is None else stdout,
            stderr=said,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )


async def end(process: Process) -> None:
    """Asks a program to end and waits until it has."""
    if process.returncode is None:
        process.terminate()
        await process.wait()


@contextlib.asynccontextmanager
async def orchestrator(*, secret: str, log: Path | None = None) -> AsyncIterator[str]:
    """Runs a loopback orchestrator on a free port of this machine; yields its url.

    Raises:
        ProgramFailed: it does not start.
    """
    process = await start(
        *("orchestrator", "--listen", "127.0.0.1:0"),
        log=log,
        stdout=PIPE,
        environment={"LIVEPEER_RAY_ORCH_SECRET": secret},
    )
    try:
        if process.stdout is None:
            raise RuntimeError("the orchestrator runs without a pipe")
        words = (await process.stdout.readline()).decode().split()
        url = next((word for word in words if word.startswith("https://")), None)
        if url is None:
            raise ProgramFailed("the loopback orchestrator did not start")
        yield url
    finally:
        await end(process)
