"""A running orchestrator and a caller for each test."""

from collections.abc import AsyncIterator

import pytest

from cluster.loopback import LoopbackOrchestrator
from tests.cluster.loopback.wire import SECRET, Caller, calling


@pytest.fixture
async def orchestrator() -> AsyncIterator[LoopbackOrchestrator]:
    """An orchestrator on a free port."""
    async with LoopbackOrchestrator(secret=SECRET) as orchestrator:
        yield orchestrator


@pytest.fixture
async def caller(orchestrator: LoopbackOrchestrator) -> AsyncIterator[Caller]:
    """A caller of that orchestrator."""
    async with calling(orchestrator) as caller:
        yield caller
