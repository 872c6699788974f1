"""The ways between the bridge and the orchestrator, which can be cut and blackholed.

A forwarder (wire.py) stands in each: one for what the bridge connects to, one for the requests that
the orchestrator sends to a live runner. Killing it cuts every connection; they are refused until it
is there again. Where we may make a network namespace, the forwarders run in one: with its links
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
class Link:
    """A link into a network namespace."""

    device: str
    """From without; its other end has an `n` more."""
    ours: str
    """The address without."""
    theirs: str
    """The address within."""


@dataclass(frozen=True, kw_only=True)
class Namespace:
    """A network namespace with a link to the bridge and one to the orchestrator."""

    name: str
    bridge: Link
    orchestrator: Link

    def blackhole(self, *, on: bool) -> None:
        """Has packets on both links vanish."""
        for link in (self.bridge, self.orchestrator):
            _ip("-n", self.name, "link", "set", f"{link.device}n", "down" if on else "up")


@contextmanager
def namespace() -> Iterator[Namespace | str]:
    """Makes one, and takes it away again; yields why not where it cannot be made."""
    number = os.getpid()
    # Of the block that is set aside for tests of networks (RFC 2544).
    net = f"198.18.{number % 256}"
    name = f"faults{number}"
    bridge = Link(device=f"lrb{number}", ours=f"{net}.1", theirs=f"{net}.2")
    orchestrator = Link(device=f"lro{number}", ours=f"{net}.5", theirs=f"{net}.6")
    try:
        try:
            _ip("netns", "add", name)
            for link in (bridge, orchestrator):
                _connect(name, link)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", "") or str(error)
            yield f"no network namespace can be made here: {said.strip()}"
            return
        yield Namespace(name=name, bridge=bridge, orchestrator=orchestrator)
    finally:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            _ip("netns", "del", name)


def _connect(name: str, link: Link) -> None:
    """Makes a link into the namespace of this name."""
    within = f"{link.device}n"
    _ip("link", "add", link.device, "type", "veth", "peer", "name", within, "netns", name)
    _ip("addr", "add", f"{link.ours}/30", "dev", link.device)
    _ip("-n", name, "addr", "add", f"{link.theirs}/30", "dev", within)
    _ip("link", "set", link.device, "up")
    _ip("-n", name, "link", "set", within, "up")
    # Without, a link that is down would be told of as a host that is not there.
    mac = _ip("netns", "exec", name, "cat", f"/sys/class/net/{within}/address").strip()
    _ip("neigh", "replace", link.theirs, "lladdr", mac, "nud", "permanent", "dev", link.device)


def _ip(*arguments: str) -> str:
    return subprocess.run(
        ["ip", *arguments],  # noqa: S607 (where it is differs between systems)
        check=True,
        capture_output=True,
        text=True,
    ).stdout


class Wire:
    """A forwarder, always at the same address."""

    def __init__(self, *, host: str, target: str, within: Namespace | None) -> None:
        """Starts nothing yet.

        Args:
            host: where it listens.
            target: HOST:PORT that it leads to.
            within: the namespace to run in.
        """
        self._host = host
        self._target = target
        self._within = within
        self._port = 0
        self.process: Process

    @property
    def address(self) -> str:
        """HOST:PORT for who is to connect."""
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
