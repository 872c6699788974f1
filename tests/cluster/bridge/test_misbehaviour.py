"""An orchestrator that does wrong: every job of it is still answered, once."""

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp
import pytest

from cluster.loopback import LoopbackOrchestrator
from cluster.loopback.misbehaviour import Wrong
from tests.cluster.bridge.conftest import Ask, address, capacity, registered, running

Misbehave = Callable[[Wrong], Awaitable[None]]


@pytest.fixture
def misbehave(orchestrator: LoopbackOrchestrator) -> Misbehave:
    async def change(how: Wrong) -> None:
        connector = aiohttp.TCPConnector(ssl=False)
        async with (
            aiohttp.ClientSession(orchestrator.url, connector=connector) as http,
            http.post("/misbehave", data=how) as response,
        ):
            assert response.status == 200

    return change


async def test_a_job_that_comes_twice_runs_once(
    orchestrator: LoopbackOrchestrator, ask: Ask, misbehave: Misbehave
) -> None:
    async with running(address(orchestrator), capacity(a=2)) as bridge:
        await registered(orchestrator)
        await misbehave(Wrong.JOBS_TWICE)
        bridge.backend.takes_s = 0.1
        assert [(await ask())[0] for _ in range(3)] == [200, 200, 200]
        assert len(bridge.backend.started) == 3
    assert orchestrator.late == []


async def test_messages_that_are_no_jobs_are_passed_over(
    orchestrator: LoopbackOrchestrator,
    ask: Ask,
    misbehave: Misbehave,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(address(orchestrator), capacity(a=1)) as bridge:
        await registered(orchestrator)
        (worker,) = orchestrator.workers
        await misbehave(Wrong.MESSAGES_GARBAGE)
        assert [(await ask())[0] for _ in range(3)] == [200, 200, 200]
        assert orchestrator.workers == (worker,)
        assert not bridge.task.done()
    assert "sent a message that cannot be read" in caplog.text


@pytest.mark.parametrize("how", [Wrong.ANSWERS_500, Wrong.ANSWERS_CUT, Wrong.ANSWERS_GARBAGE])
async def test_an_answer_that_is_mistreated_is_sent_again(
    orchestrator: LoopbackOrchestrator,
    ask: Ask,
    misbehave: Misbehave,
    caplog: pytest.LogCaptureFixture,
    how: Wrong,
) -> None:
    async with running(address(orchestrator), capacity(a=1)):
        await registered(orchestrator)
        await misbehave(how)

        asked = asyncio.create_task(ask())
        while "not delivered, again in" not in caplog.text:
            await asyncio.sleep(0.01)
        await misbehave(Wrong.NOTHING)
        assert (await asked)[0] == 200
    assert orchestrator.late == []
