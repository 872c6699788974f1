"""Work in its slot: it ends before its slot does, and nothing begins after the end."""

import asyncio
import gc
from contextlib import suppress

import pytest

from cluster.ai_models import ModelKey
from cluster.bridge.deadlines import Deadlines
from cluster.bridge.execution import Execution
from cluster.bridge.job import Visit, Work
from cluster.bridge.record import JobRecord
from cluster.errors import DeadlinePassed, InsufficientCapacity, JobFailed
from deployments.registry import PIPELINES
from deployments.schemas.base import Completed, Request, Result
from tests.cluster.bridge.conftest import A, SteeredBackend, capacity

WORK = Work(key=A, pipeline=PIPELINES["text-to-image"], parameters={"prompt": "a cat"})


class SlowToEnd(SteeredBackend):
    """Its work goes on until it is cancelled, and then until the test says so, come what may."""

    def __init__(self) -> None:
        super().__init__()
        self.hold.clear()
        self.end = asyncio.Event()
        self.fails_then = False

    async def run(self, key: ModelKey, request: Request, *, timeout_s: float) -> Completed[Result]:
        try:
            return await super().run(key, request, timeout_s=timeout_s)
        finally:
            while not self.end.is_set():
                with suppress(asyncio.CancelledError):
                    await self.end.wait()
            if self.fails_then:
                raise JobFailed("it was to be cancelled")


@pytest.fixture
def backend() -> SlowToEnd:
    return SlowToEnd()


@pytest.fixture
def execution(backend: SlowToEnd) -> Execution:
    made = Execution(backends={A: backend}, deadlines=Deadlines(default_s=60.0), queue_s=60.0)
    made.admission.update(capacity(a=1))
    return made


def begin(execution: Execution) -> "asyncio.Task[None]":
    """Somebody asks, and may leave before he has his answer."""
    now = asyncio.get_running_loop().time()
    visit = Visit(number=1, pipeline=WORK.pipeline.name, received_at=now)
    record = JobRecord(task_id=1, pipeline=WORK.pipeline.name)

    async def request() -> Request:
        return WORK.request()

    async def ask() -> None:
        async with execution.doing(visit, WORK, record, request=request, source="") as done:
            raise AssertionError(f"there was to be no result, not {done}")

    return asyncio.create_task(ask())


async def settled() -> None:
    """Lets everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_slot_is_held_until_the_work_of_who_left_has_ended(
    execution: Execution, backend: SlowToEnd
) -> None:
    asked = begin(execution)
    await backend.wait_for_started(1)
    asked.cancel()
    await settled()
    assert backend.cancelled == 1
    assert execution.admission.in_flight[A] == 1
    backend.end.set()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert execution.admission.in_flight[A] == 0


async def test_how_the_work_of_who_left_ended_concerns_nobody(
    execution: Execution, backend: SlowToEnd, caplog: pytest.LogCaptureFixture
) -> None:
    backend.fails_then = True
    asked = begin(execution)
    await backend.wait_for_started(1)
    asked.cancel()
    backend.end.set()
    await asyncio.wait({asked})
    del asked
    gc.collect()
    assert caplog.text == "", "asyncio complains of errors that nobody looked at"


async def test_who_cancels_twice_waits_no_longer(execution: Execution, backend: SlowToEnd) -> None:
    asked = begin(execution)
    await backend.wait_for_started(1)
    for _ in range(2):
        asked.cancel()
        await settled()
    assert asked.cancelled()
    backend.end.set()
    await settled()


async def test_who_gets_the_slot_of_what_was_called_off_begins_nothing(
    execution: Execution, backend: SlowToEnd
) -> None:
    running = begin(execution)
    await backend.wait_for_started(1)
    waiting = begin(execution)
    await settled()
    backend.end.set()
    execution.stop()
    for asked in (running, waiting):
        with pytest.raises(InsufficientCapacity, match="this worker is shutting down"):
            await asyncio.wait_for(asked, timeout=60)
    assert len(backend.started) == 1


@pytest.mark.parametrize(
    ("slots", "error", "words"),
    [(1, DeadlinePassed, "no result within 0.1 s"), (0, InsufficientCapacity, "no replica of")],
)
async def test_a_model_without_a_replica_is_not_blamed_for_the_time(
    backend: SlowToEnd, slots: int, error: type[Exception], words: str
) -> None:
    backend.end.set()
    execution = Execution(backends={A: backend}, deadlines=Deadlines(default_s=0.1), queue_s=60.0)
    execution.admission.update(capacity(a=1))
    asked = begin(execution)
    await backend.wait_for_started(1)
    execution.admission.update(capacity(a=slots))
    with pytest.raises(error, match=words):
        await asyncio.wait_for(asked, timeout=60)
