"""The faults that need no waiting; `make faults` runs them all and prints a table."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.faults.doors import Door
from tests.faults.run import run
from tests.faults.table import FAULTS, Fault
from tests.faults.world import World, world

SHORT = [
    pytest.param(door, fault, id=f"{door}: {fault.name}")
    for door in Door
    for fault in FAULTS
    if fault.short and door in fault.proofs
]
"""Door by door, for each change takes the bridge some seconds."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """The processes that all faults happen to."""
    async with world(tmp_path_factory.mktemp("faults"), networks=False) as made:
        yield made


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("door", "fault"), SHORT)
async def test_no_job_is_lost(door: Door, fault: Fault, made: World) -> None:
    await made.use(door)
    outcome = await run(fault, made)
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    assert not outcome.problems, "\n".join([*outcome.problems, *made.bridge_log])
    assert outcome.counts.results
