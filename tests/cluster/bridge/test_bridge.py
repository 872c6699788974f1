"""Jobs through the bridge, over the wire: every one is answered, whatever happens to it."""

import asyncio
import gc
import json
import weakref
from contextlib import AsyncExitStack

import pytest

from cluster.ai_models import ModelKey
from cluster.errors import InsufficientCapacity, InvalidSecret, JobFailed, JobRejected
from cluster.loopback import JobFailed as JobFailedAtTheOrchestrator
from cluster.loopback import LoopbackOrchestrator
from deployments.schemas.base import Completed, Request, Result
from tests.cluster.bridge.conftest import (
    SECRET,
    A,
    Ask,
    B,
    SteeredBackend,
    address,
    capacity,
    image_result,
    registered,
    running,
    waiting,
)


async def test_a_job_end_to_end(orchestrator: LoopbackOrchestrator, ask: Ask) -> None:
    async with running(address(orchestrator), capacity(a=1)) as bridge:
        await registered(orchestrator)
        bridge.backend.result = image_result(7, 8)
        status, document = await ask(num_images_per_prompt=2)
    assert status == 200
    assert [image["seed"] for image in document["images"]] == [7, 8]
    (record,) = bridge.records
    assert (record.task_id, record.model_id, record.outcome) == (0, "org/a", "ok")
    assert record.delivered
    assert record.replica == "steered"


async def test_jobs_run_side_by_side_up_to_the_slots(
    orchestrator: LoopbackOrchestrator, ask: Ask
) -> None:
    async with running(address(orchestrator), capacity(a=3)) as bridge:
        await registered(orchestrator)
        bridge.backend.hold.clear()
        asked = [asyncio.create_task(ask()) for _ in range(3)]
        await bridge.backend.wait_for_started(3)
        # The orchestrator counts too, so what is beyond the slots is sent past its selection.
        with pytest.raises(JobFailedAtTheOrchestrator, match="all 3 slots of text-to-image"):
            await orchestrator.send_job(
                worker=orchestrator.workers[0],
                pipeline="text-to-image",
                request_data=b'{"request": {"prompt": "x", "model_id": "org/a"}}',
            )
        bridge.backend.hold.set()
        assert [status for status, _ in await asyncio.gather(*asked)] == [200, 200, 200]


async def test_a_slot_is_free_when_its_answer_arrives(
    orchestrator: LoopbackOrchestrator, ask: Ask
) -> None:
    async with running(address(orchestrator), capacity(a=1)) as bridge:
        await registered(orchestrator)
        for _ in range(20):
            assert (await ask())[0] == 200
    assert [record.outcome for record in bridge.records] == ["ok"] * 20


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (JobRejected("width: no"), 400, "width: no"),
        (InsufficientCapacity("the replica died"), 503, "insufficient capacity"),
        (JobFailed("out of memory"), 500, "text-to-image container returned 500: out of memory"),
        (KeyError("a bug"), 500, "text-to-image container returned 500: KeyError in the bridge"),
    ],
)
async def test_every_failure_is_answered_in_the_right_words(
    orchestrator: LoopbackOrchestrator, ask: Ask, error: Exception, status: int, text: str
) -> None:
    async with running(address(orchestrator), capacity(a=1)) as bridge:
        await registered(orchestrator)
        bridge.backend.result = error
        answered, document = await ask()
        assert answered == status
        assert text in json.dumps(document)
        bridge.backend.result = image_result(1)
        assert (await ask())[0] == 200, "the next job works"


@pytest.mark.parametrize(
    ("pipeline", "data", "text"),
    [
        ("text-to-image", b"{", "returned 400: the job is not JSON"),
        ("text-to-image", b"\x00\xff", "returned 400: the job is not JSON"),
        ("text-to-image", b'{"request": {"model_id": "org/a"}}', "returned 400: prompt"),
        (
            "text-to-image",
            b'{"request": {"model_id": "org/a", "prompt": "x", "width": 513}}',
            "returned 400: width",
        ),
        ("text-to-image", b'{"request": {"model_id": "org/c", "prompt": "x"}}', "not serve"),
        ("mind-reading", b'{"request": {"prompt": "x"}}', "insufficient capacity"),
        ("line\nbreak", b"{}", "insufficient capacity"),
    ],
)
async def test_bad_jobs_are_answered_and_the_next_one_works(
    orchestrator: LoopbackOrchestrator, ask: Ask, pipeline: str, data: bytes, text: str
) -> None:
    async with running(address(orchestrator), capacity(a=1)) as bridge:
        await registered(orchestrator)
        with pytest.raises(JobFailedAtTheOrchestrator, match=text):
            await orchestrator.send_job(
                worker=orchestrator.workers[0], pipeline=pipeline, request_data=data
            )
        assert bridge.backend.started == []
        assert (await ask())[0] == 200


async def test_a_job_past_its_deadline_is_stopped_and_answered(
    orchestrator: LoopbackOrchestrator, ask: Ask
) -> None:
    async with running(address(orchestrator), capacity(a=1), deadline_s=0.3) as bridge:
        await registered(orchestrator)
        bridge.backend.hold.clear()
        status, document = await ask()
        assert status == 500
        assert "no result within 0.3 s" in json.dumps(document)
        assert bridge.backend.cancelled == 1
        bridge.backend.hold.set()
        assert (await ask())[0] == 200


async def test_the_end_finishes_what_runs(orchestrator: LoopbackOrchestrator, ask: Ask) -> None:
    async with running(address(orchestrator), capacity(a=2)) as bridge:
        await registered(orchestrator)
        bridge.backend.hold.clear()
        asked = asyncio.create_task(ask())
        await bridge.backend.wait_for_started(1)
        bridge.stop.set()
        await registered(orchestrator, 0)
        assert not bridge.task.done(), "it waits for the job"
        bridge.backend.hold.set()
        assert (await asked)[0] == 200
        await bridge.task


async def test_what_outlasts_the_grace_is_answered_for_somebody_else(
    orchestrator: LoopbackOrchestrator, ask: Ask
) -> None:
    async with running(address(orchestrator), capacity(a=1), grace_s=0.1) as bridge:
        await registered(orchestrator)
        bridge.backend.hold.clear()
        asked = asyncio.create_task(ask())
        await bridge.backend.wait_for_started(1)
        bridge.stop.set()
        status, document = await asked
        assert status == 503
        assert "insufficient capacity: this worker is shutting down" in json.dumps(document)
        assert bridge.backend.cancelled == 1
        await bridge.task


async def test_a_wrong_secret_ends_the_bridge(orchestrator: LoopbackOrchestrator) -> None:
    async with running(address(orchestrator), capacity(a=1), secret="wrong") as bridge:
        with pytest.raises(InvalidSecret, match="--orch-secret must be the orchestrator's"):
            await bridge.task


async def test_a_model_that_goes_while_its_job_waits_is_had_elsewhere(
    orchestrator: LoopbackOrchestrator, ask: Ask
) -> None:
    async with running(address(orchestrator), capacity(a=1), queue_s=20.0) as bridge:
        await registered(orchestrator)
        bridge.backend.hold.clear()
        asked = asyncio.create_task(ask())
        await bridge.backend.wait_for_started(1)
        in_vain = asyncio.create_task(
            orchestrator.send_job(
                worker=orchestrator.workers[0],
                pipeline="text-to-image",
                request_data=b'{"request": {"prompt": "x", "model_id": "org/a"}}',
            )
        )
        while not waiting(bridge.bridge, A):
            await asyncio.sleep(0.01)
        bridge.bridge.serve({B: bridge.backend})
        bridge.backend.hold.set()
        assert (await asked)[0] == 200, "what runs goes on"
        with pytest.raises(JobFailedAtTheOrchestrator, match=r"^insufficient capacity: .*org/a"):
            await in_vain


class FailingBackend(SteeredBackend):
    """One whose jobs all fail, and which keeps nothing of the failure."""

    async def run(self, key: ModelKey, request: Request, *, timeout_s: float) -> Completed[Result]:
        self.started.append(request)
        raise JobFailed(f"{key} failed, with {timeout_s} s left")


async def test_a_failed_request_does_not_wait_for_the_garbage_collector(
    orchestrator: LoopbackOrchestrator, ask: Ask
) -> None:
    backend = FailingBackend()
    async with running(address(orchestrator), capacity(a=1)) as bridge:
        await registered(orchestrator)
        bridge.bridge.serve({A: backend})
        gc.disable()
        try:
            assert (await ask())[0] == 500
            while not bridge.records:
                await asyncio.sleep(0.01)
            # Its image may have hundreds of megabytes.
            request = weakref.ref(backend.started.pop())
            assert request() is None
        finally:
            gc.enable()


async def test_two_bridges_with_different_models(
    orchestrator: LoopbackOrchestrator, ask: Ask
) -> None:
    where = address(orchestrator)
    async with running(where, capacity(a=1)) as first, running(where, capacity(b=1)) as second:
        await registered(orchestrator, 2)
        answers = await asyncio.gather(ask(model_id="org/a"), ask(model_id="org/b"))
        assert [status for status, _ in answers] == [200, 200]
        assert [len(first.backend.started), len(second.backend.started)] == [1, 1]


async def test_a_change_of_capacity_is_made_before_the_old_is_broken(
    orchestrator: LoopbackOrchestrator, ask: Ask
) -> None:
    async with running(address(orchestrator), capacity(a=2)) as bridge:
        await registered(orchestrator)
        bridge.backend.hold.clear()
        asked = asyncio.create_task(ask())
        await bridge.backend.wait_for_started(1)
        old = orchestrator.workers[0].peer
        bridge.capacities.put_nowait(capacity(a=1, b=2))
        await registered(orchestrator, 2)
        await orchestrator.wait_for_workers(
            lambda workers: len(workers) == 1 and workers[0].peer != old
        )
        bridge.backend.hold.set()
        assert (await asked)[0] == 200, "a job of the old registration is still answered"
        assert (await ask(model_id="org/b"))[0] == 200


async def test_without_capacity_it_leaves_and_comes_back(
    orchestrator: LoopbackOrchestrator, ask: Ask
) -> None:
    async with running(address(orchestrator), capacity()) as bridge:
        bridge.capacities.put_nowait(capacity(a=1))
        await registered(orchestrator)
        bridge.capacities.put_nowait(capacity())
        await registered(orchestrator, 0)
        assert (await ask())[0] == 503
        bridge.capacities.put_nowait(capacity(a=1))
        await registered(orchestrator)
        assert (await ask())[0] == 200


async def test_it_finds_a_restarted_orchestrator_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with AsyncExitStack() as stack:
        async with LoopbackOrchestrator(secret=SECRET) as first:
            where = address(first)
            bridge = await stack.enter_async_context(running(where, capacity(a=1)))
            await registered(first)
        async with LoopbackOrchestrator(secret=SECRET, port=where.port) as second:
            assert second.fingerprint != first.fingerprint
            await registered(second)
            answer = await second.send_job(
                worker=second.workers[0],
                pipeline="text-to-image",
                request_data=b'{"request": {"prompt": "x", "model_id": "org/a"}}',
            )
            assert len(answer.files) == 1
            await stack.aclose()
    (record,) = bridge.records
    assert (record.task_id, record.delivered) == (0, True)
    assert "trying again" in caplog.text


@pytest.mark.parametrize(
    "data",
    [
        b'{"request": {"prompt": "x", "model_id": "\\ud800"}}',
        b'{"request": {"prompt": "\\ud800", "model_id": "org/a"}}',
        b'{"request": {"prompt": "x", "model_id": "org/a", "width": "\\ud800"}}',
    ],
)
async def test_text_that_cannot_be_encoded_is_answered(
    orchestrator: LoopbackOrchestrator, data: bytes
) -> None:
    async with running(address(orchestrator), capacity(a=1)):
        await registered(orchestrator)
        with pytest.raises(JobFailedAtTheOrchestrator):
            await orchestrator.send_job(
                worker=orchestrator.workers[0], pipeline="text-to-image", request_data=data
            )
