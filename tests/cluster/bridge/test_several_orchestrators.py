"""One worker for several orchestrators: what one of them does is no concern of the others."""

import asyncio
import json

import pytest

from cluster.errors import InvalidSecret
from cluster.loopback import LoopbackOrchestrator
from tests.cluster.bridge.conftest import SECRET, A, address, capacity, registered, running, waiting


async def send(orchestrator: LoopbackOrchestrator, prompt: str = "x") -> int:
    """Sends a job to the orchestrator's worker; how many files came back."""
    request = {"prompt": prompt, "model_id": "org/a"}
    answer = await orchestrator.send_job(
        worker=orchestrator.workers[0],
        pipeline="text-to-image",
        request_data=json.dumps({"request": request}).encode(),
    )
    return len(answer.files)


async def test_each_gets_the_answers_to_its_own_jobs() -> None:
    async with (
        LoopbackOrchestrator(secret=SECRET) as first,
        LoopbackOrchestrator(secret=SECRET) as second,
        running(address(first), capacity(a=4), address(second)) as bridge,
    ):
        await registered(first)
        await registered(second)
        # The same task ids, at the same time.
        jobs = [send(orchestrator) for _ in range(4) for orchestrator in (first, second)]
        assert await asyncio.gather(*jobs) == [1] * 8
        assert (first.faults, second.faults) == ([], [])
        records = [record.task_id for record in bridge.records]
        assert sorted(records) == sorted([*range(4), *range(4)])


async def test_one_that_takes_everything_leaves_the_others_their_share() -> None:
    async with (
        LoopbackOrchestrator(secret=SECRET) as greedy,
        LoopbackOrchestrator(secret=SECRET) as modest,
        running(address(greedy), capacity(a=2), address(modest), queue_s=30.0) as bridge,
    ):
        await registered(greedy)
        await registered(modest)
        bridge.backend.hold.clear()
        many = [asyncio.create_task(send(greedy, "greedy")) for _ in range(5)]
        await bridge.backend.wait_for_started(2)
        one = asyncio.create_task(send(modest, "modest"))
        while waiting(bridge.bridge, A) < 4:
            await asyncio.sleep(0.01)
        bridge.backend.hold.set()
        assert await one == 1
        assert await asyncio.gather(*many) == [1] * 5
        prompts = [getattr(request, "prompt", "") for request in bridge.backend.started]
        assert prompts == ["greedy", "greedy", "modest", "greedy", "greedy", "greedy"]


async def test_one_that_is_down_or_refuses_us_disturbs_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with LoopbackOrchestrator(secret=SECRET) as gone:
        down = address(gone)
    async with (
        LoopbackOrchestrator(secret="another") as refusing,
        LoopbackOrchestrator(secret=SECRET) as good,
        running(down, capacity(a=1), address(refusing), address(good)) as bridge,
    ):
        await registered(good)
        async with asyncio.timeout(10):
            while "going on with the others" not in caplog.text:
                await asyncio.sleep(0.01)
        assert await send(good) == 1
        assert not bridge.task.done()


async def test_when_all_refuse_us_it_ends() -> None:
    async with (
        LoopbackOrchestrator(secret="another") as first,
        LoopbackOrchestrator(secret="another") as second,
        running(address(first), capacity(a=1), address(second)) as bridge,
    ):
        with pytest.raises(InvalidSecret):
            await bridge.task
