"""Programs as a test runs them: started, read line by line, and always ended."""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

PATIENCE_S = 600.0
"""Tells a hang from a slow machine: thirteen models that load at once take 110 s on two quiet
cores and were seen to take more than 240 s on two busy ones."""
BIN = Path(sys.executable).parent


class Program:
    """A running program and everything it said, stdout and stderr together."""

    def __init__(self, process: Process, *, on_line: Callable[[str], None] | None = None) -> None:
        self.process = process
        self._on_line = on_line
        self.lines: list[str] = []
        self._news = asyncio.Condition()
        self._ended = False

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    async def read(self) -> None:
        """Collects what it says until it ends."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            async with self._news:
                self.lines.append(line.decode(errors="replace").rstrip())
                if self._on_line:
                    self._on_line(self.lines[-1])
                self._news.notify_all()
        async with self._news:
            self._ended = True
            self._news.notify_all()

    async def says(self, pattern: str) -> str:
        """Waits for a line that matches; fails when the program ends without it."""

        def found() -> list[str]:
            return [line for line in self.lines if re.search(pattern, line)]

        async with self._news:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self._news.wait_for(lambda: found() or self._ended)
            except TimeoutError:
                raise AssertionError(f"never said {pattern!r}:\n{self.output}") from None
        assert found(), f"ended without saying {pattern!r}:\n{self.output}"
        return found()[0]

    async def ends(self) -> int:
        """Waits for its end; the exit status."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)


@asynccontextmanager
async def program(
    *command: str | Path,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    on_line: Callable[[str], None] | None = None,
) -> AsyncIterator[Program]:
    """Runs a command of the virtual environment; terminates it at the end, then kills it."""
    process = await asyncio.create_subprocess_exec(
        BIN / command[0],
        *command[1:],
        stdin=asyncio.subprocess.DEVNULL,
        stdout=PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
        cwd=cwd,
    )
    running = Program(process, on_line=on_line)
    reading = asyncio.create_task(running.read())
    try:
        yield running
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), timeout=60.0)
            except TimeoutError:
                process.kill()
                await process.wait()
        await reading


def livepeer_ray(*arguments: str, secret: str = "") -> AbstractAsyncContextManager[Program]:
    """`livepeer-ray ...`, with the secret where a careful operator puts it."""
    environment = {"LIVEPEER_RAY_ORCH_SECRET": secret} if secret else {}
    return program("livepeer-ray", *arguments, environment=environment)
