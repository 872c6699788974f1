"""One model in several places: the load goes where the free slots are."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from cluster.ai_models import ModelKey
from cluster.backends.shared import Place, SharedBackend
from cluster.errors import InsufficientCapacity, JobFailed, ReplicaLost
from deployments.schemas.base import Chunk, Completed, Request, Result
from tests.cluster.bridge.conftest import image_result
from tests.cluster.external.runner import IMAGES, LLM
from tests.cluster.external.test_external import request


class Somewhere:
    """A place that says who it is, and ends jobs when the test wants it."""

    def __init__(self, name: str, slots: int) -> None:
        self.slots = slots
        self.place = Place(name=name, backend=self, slots=lambda: self.slots)
        self.error: Exception | None = None
        self.hold = asyncio.Event()
        self.hold.set()
        self.closed = 0

    async def run(self, key: ModelKey, request: Request, *, timeout_s: float) -> Completed[Result]:
        assert (key, request.wants_stream, timeout_s) == (IMAGES, False, 9.0)
        await self.hold.wait()
        if self.error:
            raise self.error
        return Completed(result=image_result(1), replica=self.place.name, compute_s=0.0)

    async def stream(
        self, key: ModelKey, request: Request, *, timeout_s: float
    ) -> AsyncGenerator[Chunk, None]:
        assert (key, request.wants_stream, timeout_s) == (LLM, True, 9.0)
        try:
            await self.hold.wait()
            if self.error:
                raise self.error
            while True:
                yield  # type: ignore[misc]  # what it yields goes through untouched
        finally:
            self.closed += 1


async def served(shared: SharedBackend) -> str:
    return (await shared.run(IMAGES, request(IMAGES), timeout_s=9.0)).replica


@asynccontextmanager
async def held(shared: SharedBackend, *places: Somewhere, jobs: int) -> AsyncIterator[list[int]]:
    """Runs jobs until the end of the context; yields how many there are in each place."""
    for place in places:
        place.hold.clear()
    running = [asyncio.create_task(served(shared)) for _ in range(jobs)]
    await asyncio.sleep(0)
    try:
        yield [shared.in_flight(IMAGES, place.place.name) for place in places]
    finally:
        for place in places:
            place.hold.set()
        await asyncio.gather(*running)


async def test_jobs_go_where_the_most_slots_are_free() -> None:
    ray, container = Somewhere("Ray", 2), Somewhere("http://a", 4)
    shared = SharedBackend()
    shared.serve({IMAGES: [ray.place, container.place]})
    async with held(shared, ray, container, jobs=2) as jobs:
        assert jobs == [0, 2]
    async with held(shared, ray, container, jobs=6) as jobs:
        assert jobs == [2, 4], "all slots are used"
    assert shared.in_flight(IMAGES, "Ray") == 0


async def test_one_without_slots_gets_none() -> None:
    ray, container = Somewhere("Ray", 0), Somewhere("http://a", 1)
    shared = SharedBackend()
    shared.serve({IMAGES: [ray.place, container.place]})
    async with held(shared, ray, container, jobs=3) as jobs:
        assert jobs == [0, 3], "more than its slots only where there are no others"
    container.slots = 0
    with pytest.raises(InsufficientCapacity):
        await served(shared)


async def test_the_only_place_is_taken_whatever_it_says() -> None:
    ray, shared = Somewhere("Ray", 0), SharedBackend()
    shared.serve({IMAGES: [ray.place]})
    assert await served(shared) == "Ray"


async def test_a_lost_job_is_tried_elsewhere() -> None:
    ray, container = Somewhere("Ray", 1), Somewhere("http://a", 4)
    container.error = ReplicaLost("it died")
    shared = SharedBackend()
    shared.serve({IMAGES: [ray.place, container.place]})
    with pytest.raises(ReplicaLost):
        await served(shared)
    assert await served(shared) == "Ray"
    async with held(shared, ray, jobs=1):
        with pytest.raises(ReplicaLost):
            await served(shared)
    container.error = JobFailed("it is the job's fault")
    assert await served(shared) == "Ray"


async def test_a_failed_job_is_no_reason_to_go_elsewhere() -> None:
    ray, container = Somewhere("Ray", 1), Somewhere("http://a", 4)
    container.error = JobFailed("out of memory")
    shared = SharedBackend()
    shared.serve({IMAGES: [ray.place, container.place]})
    for _ in range(2):
        with pytest.raises(JobFailed):
            await served(shared)


async def test_counts_outlive_a_change_of_places() -> None:
    one, other = Somewhere("http://a", 2), Somewhere("http://b", 2)
    shared = SharedBackend()
    shared.serve({IMAGES: [one.place]})
    async with held(shared, one, jobs=1):
        shared.serve({IMAGES: [one.place, other.place]})
        assert await served(shared) == "http://b"


async def test_a_stream_holds_its_slot_until_it_is_closed() -> None:
    one, shared = Somewhere("http://a", 2), SharedBackend()
    shared.serve({LLM: [one.place]})
    chunks = shared.stream(LLM, request(LLM), timeout_s=9.0)
    async with aclosing(chunks):
        await anext(chunks)
        assert shared.in_flight(LLM, "http://a") == 1
    assert (shared.in_flight(LLM, "http://a"), one.closed) == (0, 1)
    one.error = ReplicaLost("it died")
    with pytest.raises(ReplicaLost):
        await anext(shared.stream(LLM, request(LLM), timeout_s=9.0))
