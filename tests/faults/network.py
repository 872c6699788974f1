"""The way from the bridge to the orchestrator, which can be cut and blackholed.

A forwarder (wire.py) stands in between. Killing it cuts every connection; they are refused until
it is there again. Where we may make a network namespace, the forwarder runs in one: with its link
down, packets vanish both ways, and neither side is told.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Namespace:
    """A network namespace with a link on which the bridge comes in, and one to the orchestrator."""

    name: str
    bridge_side: str
    """Its address on the first link."""
    orchestrator_side: str
    """Our own address on the second."""
    link: str
    """The first, from within."""

    def blackhole(self, *, on: bool) -> None:
        """Has packets on the first link vanish."""
        _ip("-n", self.name, "link", "set", self.link, "down" if on else "up")


@contextmanager
def namespace() -> Iterator[Namespace | str]:
    """Makes one, and takes it away again; yields why not where it cannot be made."""
    number = os.getpid()
    # Of the block that is set aside for tests of networks (RFC 2544).
    net = f"198.18.{number % 256}"
    name, bridge, orchestrator = f"faults{number}", f"lrb{number}", f"lro{number}"
    try:
        try:
            _ip("netns", "add", name)
            for ours, first in ((bridge, 1), (orchestrator, 5)):
                theirs = f"{ours}n"
                _ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
                _ip("addr", "add", f"{net}.{first}/30", "dev", ours)
                _ip("-n", name, "addr", "add", f"{net}.{first + 1}/30", "dev", theirs)
                _ip("link", "set", ours, "up")
                _ip("-n", name, "link", "set", theirs, "up")
            # Without, a link that is down would be told of as a host that is not there.
            mac = _ip("netns", "exec", name, "cat", f"/sys/class/net/{bridge}n/address").strip()
            _ip("neigh", "replace", f"{net}.2", "lladdr", mac, "nud", "permanent", "dev", bridge)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", "") or str(error)
            yield f"no network namespace can be made here: {said.strip()}"
            return
        yield Namespace(
            name=name,
            bridge_side=f"{net}.2",
            orchestrator_side=f"{net}.5",
            link=f"{bridge}n",
        )
    finally:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            _ip("netns", "del", name)


def _ip(*arguments: str) -> str:
    return subprocess.run(
        ["ip", *arguments],  # noqa: S607 (where it is differs between systems)
        check=True,
        capture_output=True,
        text=True,
    ).stdout


class Wire:
    """The forwarder, always at the same address."""

    def __init__(self, *, target: str, within: Namespace | None) -> None:
        """Takes the orchestrator's HOST:PORT and the namespace to run in; starts nothing yet."""
        self._target = target
        self._within = within
        self._host = within.bridge_side if within else "127.0.0.1"
        self._port = 0
        self.process: Process

    @property
    def address(self) -> str:
        """HOST:PORT for the bridge."""
        return f"{self._host}:{self._port}"

    async def start(self) -> None:
        """Starts it, at the first time at a free port."""
        python = [sys.executable, "-m", "tests.faults.wire", self.address, self._target]
        enter = ["ip", "netns", "exec", self._within.name] if self._within else []
        self.process = await asyncio.create_subprocess_exec(
            *enter, *python, stdout=PIPE, cwd=Path(__file__).parents[2]
        )
        assert self.process.stdout is not None
        self._port = int(await self.process.stdout.readline())

    async def kill(self) -> None:
        """Kills it, and with it every connection."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
