"""`make soak`: steady load and random faults, one after the other, and what memory does.

    python -m tests.faults.soak [--seconds N] [--seed N] [--door DOOR]

Exit status: 1 when a job was lost or something else is not as expected.
"""

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cluster import machine
from tests.faults.doors import Door
from tests.faults.ledger import Counts
from tests.faults.load import callers
from tests.faults.report import HEAD, cells
from tests.faults.run import complaints_of, settled, strike, watched
from tests.faults.table import FAULTS
from tests.faults.world import World, until_told_to_end, world

PAUSE_S = (5.0, 20.0)
"""Between the end of one fault and the next."""

MEMORY_S = 5.0
"""Between two looks at the processes' memory."""

YOUNG_S = 30.0
"""A process that is younger still allocates what it needs to work at all."""

MIB = 2**20


@dataclass(slots=True, kw_only=True)
class _Process:
    """The memory of one process, since it was no longer young."""

    kind: str
    born_at: float
    """When it was first seen."""
    first_bytes: int = 0
    last_bytes: int = 0
    seconds: float = 0.0


def main() -> int:
    """Soaks and prints."""
    parser = argparse.ArgumentParser(prog="tests.faults.soak", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))  # noqa: S311
    parser.add_argument("--door", type=Door, choices=list(Door), default=Door.WORKER)
    arguments = parser.parse_args()
    where = machine.describe()
    _say(f"seed {arguments.seed}")
    soaking = _run(arguments.seconds, arguments.seed, arguments.door)
    problems = asyncio.run(until_told_to_end(soaking))
    _say(
        f"\nmachine: {where['cores']} cores of {where['cpu']}, {where['memory_gib']} GiB, "
        f"load {where['load_1min_before']} before the run; ray {where['ray']}"
    )
    return int(bool(problems))


async def _run(seconds: float, seed: int, door: Door) -> list[str]:
    problems: list[str] = []
    memory: dict[int, _Process] = {}
    with tempfile.TemporaryDirectory(prefix="livepeer-ray-soak-") as directory:
        async with world(Path(directory), networks=True, door=door) as made:
            looking = asyncio.create_task(_look_at_memory(made, memory))
            counts = await _soak(made, seconds, random.Random(seed), problems)  # noqa: S311
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await looking
            problems += complaints_of(made)
    if counts.lost:
        problems.append(f"{counts.lost} jobs were lost")
    _say(
        "\n"
        + ", ".join(
            f"{head.strip('*')}: {cell}"
            for head, cell in zip(HEAD[1:], cells(counts), strict=False)
        )
    )
    _say(_memory_table(memory))
    for problem in problems:
        _say(f"NOT AS EXPECTED: {problem}")
    return problems


async def _soak(made: World, seconds: float, chance: random.Random, problems: list[str]) -> Counts:
    """Loads, and strikes until the time is over."""
    faults = [fault for fault in FAULTS if made.door in fault.proofs and not fault.lacks(made)]
    async with watched(made) as watch:
        await watch.well()
        since = time.monotonic()
        async with callers(made) as load:
            while time.monotonic() - since < seconds:
                await asyncio.sleep(chance.uniform(*PAUSE_S))
                fault = chance.choice(faults)
                at_s = time.monotonic() - since
                took_s = await strike(fault, made, watch, problems)
                _say(f"{at_s:6.0f} s  {fault.name}: well after {took_s:.1f} s")
            return await settled(made, load, since=since)


async def _look_at_memory(made: World, memory: dict[int, _Process]) -> None:
    """Looks for ever."""
    while True:
        now = time.monotonic()
        for kind, pid, resident in made.memory():
            process = memory.setdefault(pid, _Process(kind=kind, born_at=now))
            # A worker of Ray's learns only later what it is.
            process.kind = kind
            process.seconds = now - process.born_at
            if process.seconds < YOUNG_S or not process.first_bytes:
                process.first_bytes = resident
            process.last_bytes = resident
        await asyncio.sleep(MEMORY_S)


def _memory_table(memory: dict[int, _Process]) -> str:
    """Of each kind of process that got old enough the one that grew most."""
    rows = ["", "| process | how many | lived | MiB when 30 s old | at last | growth |"]
    rows.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    for kind in sorted({process.kind for process in memory.values()}):
        old = [one for one in memory.values() if one.kind == kind and one.seconds > 2 * YOUNG_S]
        if not old:
            continue
        most = max(old, key=lambda one: one.last_bytes - one.first_bytes)
        rows.append(
            f"| {kind} | {len(old)} | {most.seconds:.0f} s | {most.first_bytes / MIB:.0f} "
            f"| {most.last_bytes / MIB:.0f} | {(most.last_bytes - most.first_bytes) / MIB:+.0f} |"
        )
    return "\n".join(rows)


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 (a program)


if __name__ == "__main__":
    sys.exit(main())
