"""The faults that need no waiting; `make faults` runs them all and prints a table."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.faults.run import run
from tests.faults.table import FAULTS, Fault
from tests.faults.world import World, world

SHORT = [fault for fault in FAULTS if fault.short]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """The processes that all faults happen to."""
    async with world(tmp_path_factory.mktemp("faults"), networks=False) as made:
        yield made


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("fault", SHORT, ids=lambda fault: fault.name)
async def test_no_job_is_lost(fault: Fault, made: World) -> None:
    outcome = await run(fault, made)
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    assert not outcome.problems, "\n".join([*outcome.problems, *made.bridge_log])
    assert outcome.counts.results
