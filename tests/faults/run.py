"""One fault under load, and what became of the jobs."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.faults.cluster import REPLICAS
from tests.faults.ledger import Counts, End, total
from tests.faults.load import Load, callers
from tests.faults.model import JOB_S
from tests.faults.table import Fault
from tests.faults.world import World

LATE_S = 3.0
"""A job that waits longer is a sign that something is wrong; without a fault it takes one."""

CALM_S = 3.0
"""All is well when it has been for so long."""

WARM_UP_JOBS = 2
"""Of every replica, before a fault."""

RECOVERY_S = 180.0
"""For all to be well again."""

SETTLE_S = 90.0
"""For the last jobs to be answered once no more come."""

LOOK_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a fault did."""

    name: str
    skipped: str = ""
    """Why it could not be caused; empty where it was."""
    counts: Counts = field(default_factory=Counts)
    recovery_s: float = 0.0
    """From the fault to the last moment at which something was not well, its own time included."""
    problems: tuple[str, ...] = ()
    """What is not as expected."""


class Watch:
    """Knows when something was last not well."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.unwell_at = time.monotonic()

    async def watch(self) -> None:
        """Looks for ever."""
        while True:
            if not await self._world.is_well(late_s=LATE_S):
                self.unwell_at = time.monotonic()
            await asyncio.sleep(LOOK_S)

    async def well(self) -> None:
        """Returns as soon as all is well."""
        while not await self._world.is_well(late_s=LATE_S):
            await asyncio.sleep(LOOK_S)

    async def calm(self, *, after: float) -> None:
        """Returns once all has been well for a while after a moment."""
        while time.monotonic() - max(self.unwell_at, after) < CALM_S:
            await asyncio.sleep(LOOK_S)


@asynccontextmanager
async def watched(world: World) -> AsyncIterator[Watch]:
    """Watches as long as the context lasts."""
    watch = Watch(world)
    watching = asyncio.create_task(watch.watch())
    try:
        yield watch
    finally:
        watching.cancel()
        # What it failed of would have passed for calm.
        with contextlib.suppress(asyncio.CancelledError):
            await watching


async def run(fault: Fault, world: World) -> Outcome:
    """Causes a fault under full load and says what became of the jobs."""
    if lacking := fault.lacks(world):
        return Outcome(name=fault.name, skipped=lacking)
    problems: list[str] = []
    complaints = len(complaints_of(world))
    async with watched(world) as watch:
        await _in_time(watch.well(), "not well before the fault", problems)
        since = time.monotonic()
        async with callers(world) as load:
            await _in_time(_loaded(world, since), "no jobs before the fault", problems)
            recovery_s = await strike(fault, world, watch, problems)
            counts = await settled(world, load, since=since)
    problems += complaints_of(world)[complaints:]
    problems += _unexpected(fault, counts)
    if counts.errors and not fault.errors:
        problems += errors_of(world, since=since)
    return Outcome(name=fault.name, counts=counts, recovery_s=recovery_s, problems=tuple(problems))


async def strike(fault: Fault, world: World, watch: Watch, problems: list[str]) -> float:
    """Causes a fault and waits until all is well again; how long that took.

    Args:
        fault: one that this world does not lack anything for, and that strikes its door.
        world: under load.
        watch: of this world.
        problems: gets what is not as expected.
    """
    said = len(world.bridge_log)
    at = time.monotonic()
    await fault.cause(world)
    await _in_time(watch.calm(after=time.monotonic()), f"{fault.name}: never well again", problems)
    proof = fault.proofs[world.door]
    if proof and not any(re.search(proof, line) for line in world.bridge_log[said:]):
        problems.append(f"{fault.name}: the bridge never said {proof!r}")
    return max(0.0, watch.unwell_at - at)


async def settled(world: World, load: Load, *, since: float) -> Counts:
    """Ends the load and waits for the last answers; what became of the jobs since then."""

    def open_ends() -> bool:
        # Callers without a job may be about to get one; those of jobs that never came wait on.
        never_came = total(world.ledgers, since=since).never_came
        return bool(world.open_jobs()) or load.waiting() > never_came

    load.no_more()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SETTLE_S):
            while open_ends():
                await asyncio.sleep(LOOK_S)
                world.give_up_what_never_came(late_s=LATE_S)
    world.ledgers[-1].end(End.LOST)
    return total(world.ledgers, since=since)


def complaints_of(world: World) -> list[str]:
    """What orchestrators said that the worker did wrong."""
    return [text for ledger in world.ledgers for text in ledger.faults]


def errors_of(world: World, *, since: float) -> list[str]:
    """What jobs were answered with in place of results."""
    return [
        f"{job.name}: {job.error}"
        for ledger in world.ledgers
        for job in ledger.jobs.values()
        if job.end is End.ERROR and job.ended_at >= since
    ]


async def _loaded(world: World, since: float) -> None:
    """Waits until every replica is in the middle of a job."""
    while total(world.ledgers, since=since).results < REPLICAS * WARM_UP_JOBS:
        await asyncio.sleep(LOOK_S)
    while len(world.open_jobs()) < REPLICAS:
        await asyncio.sleep(LOOK_S)
    await asyncio.sleep(JOB_S / 3)


async def _in_time(waiting: Awaitable[None], problem: str, problems: list[str]) -> None:
    """Waits, and notes it as a problem where that is in vain."""
    try:
        async with asyncio.timeout(RECOVERY_S):
            await waiting
    except TimeoutError:
        problems.append(problem)


def _unexpected(fault: Fault, counts: Counts) -> list[str]:
    """What a fault of this kind must not do to jobs."""
    allowed = {
        "lost": False,
        "never_came": fault.severed,
        "twice": fault.severed,
        "errors": fault.errors,
    }
    return [
        f"{name.replace('_', ' ')}: {getattr(counts, name)}"
        for name, fine in allowed.items()
        if getattr(counts, name) and not fine
    ]
