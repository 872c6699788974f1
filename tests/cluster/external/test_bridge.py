"""From a gateway's request through a real orchestrator port and the bridge to containers."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from pydantic import SecretStr

from cluster.ai_models import AIModel
from cluster.backends.containers import Containers
from cluster.backends.shared import SharedBackend
from cluster.bridge.bridge import Bridge
from cluster.bridge.deadlines import Deadlines
from cluster.bridge.inputs import Inputs
from cluster.bridge.registration import WorkerRegistration
from cluster.bridge.results import Delivery
from cluster.capacity import CapacityWatch
from cluster.loopback import LoopbackOrchestrator
from tests.cluster.bridge.conftest import SECRET, Ask, address, ask, orchestrator
from tests.cluster.external.runner import IMAGES, LLM, PNG, Runner, chunk, events, images, runner
from tests.cluster.external.test_health import until

__all__ = ["ask", "orchestrator"]


@asynccontextmanager
async def bridge(
    orchestrator: LoopbackOrchestrator, models: Sequence[AIModel]
) -> AsyncIterator[None]:
    """Runs a bridge that has nothing but containers, from when all are advertised."""
    stop, shared = asyncio.Event(), SharedBackend()
    async with (
        Inputs() as inputs,
        Delivery(secret=SecretStr(SECRET)) as delivery,
        Containers(interval_s=0.02) as containers,
    ):
        containers.configure(models)
        shared.serve(containers.places())
        working = Bridge(
            backends=dict.fromkeys(containers.places(), shared),
            inputs=inputs,
            delivery=delivery,
            deadlines=Deadlines(default_s=60.0),
            grace_s=10.0,
        )
        registration = WorkerRegistration(
            address=address(orchestrator),
            secret=SecretStr(SECRET),
            version="0.9.1",
            on_job=working.accept,
        )
        capacity = CapacityWatch(
            models=(), read_status=lambda _: {}, interval_s=0.02, elsewhere=containers.capacity
        )
        task = asyncio.create_task(
            working.run(registrations=[registration], snapshots=capacity.snapshots(), stop=stop)
        )
        try:
            await until(lambda: advertised(orchestrator) == sum(model.capacity for model in models))
            yield
        finally:
            stop.set()
            await task


def advertised(orchestrator: LoopbackOrchestrator) -> int:
    """Slots of all models, over all registrations."""
    return sum(slots.capacity for worker in orchestrator.workers for slots in worker.slots.values())


@pytest.fixture
async def other() -> AsyncIterator[Runner]:
    async with runner() as started:
        yield started


def dies(*beginning: Any) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Answers with the beginning of a stream, if any, and breaks off."""

    async def answer(request: web.Request) -> web.StreamResponse:
        async def break_off() -> None:
            assert request.transport
            request.transport.close()

        if not beginning:
            await break_off()
        return await events(*beginning, then=break_off)(request)

    return answer


async def test_a_job_whose_container_dies_is_done_by_another(
    orchestrator: LoopbackOrchestrator, ask: Ask, container: Runner, other: Runner
) -> None:
    container.answer = dies()
    models = [container.model(capacity=4), other.model(capacity=1)]
    async with bridge(orchestrator, models):
        status, answer = await ask()
        assert status == 200, answer
    assert len(container.seen) == len(other.seen) == 1


async def test_a_stream_that_has_begun_is_not_begun_again(
    orchestrator: LoopbackOrchestrator, container: Runner, other: Runner
) -> None:
    container.answer = dies(chunk("hello"))
    other.answer = events(chunk("again", "stop"))
    models = [container.model(LLM, capacity=4), other.model(LLM, capacity=1)]
    request = {
        "model": "org/chat",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
    }
    async with (
        bridge(orchestrator, models),
        aiohttp.ClientSession(orchestrator.url, connector=aiohttp.TCPConnector(ssl=False)) as http,
        http.post("/llm", json=request) as response,
    ):
        lines = [json.loads(line[6:]) async for line in response.content if len(line) > 6]
    said = [choice for line in lines for choice in line["choices"]]
    assert [choice["delta"]["content"] for choice in said] == ["hello", ""]
    assert said[-1]["finish_reason"] == "error"
    assert other.seen == []


async def test_one_that_hangs_costs_the_others_nothing(
    orchestrator: LoopbackOrchestrator, ask: Ask, container: Runner, other: Runner
) -> None:
    free = asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        await free.wait()
        return web.json_response(images(PNG))

    container.answer = hang
    models = [container.model(capacity=3), other.model(capacity=1)]
    async with bridge(orchestrator, models):
        # Each has no fewer free slots there than at the other one.
        hanging = [asyncio.create_task(ask()) for _ in range(3)]
        await until(lambda: len(container.seen) == 3)
        for _ in range(5):
            assert (await ask())[0] == 200
        assert (len(container.seen), len(other.seen)) == (3, 5)
        free.set()
        assert [status for status, _ in await asyncio.gather(*hanging)] == [200] * 3


async def test_one_that_is_ill_is_not_advertised(
    orchestrator: LoopbackOrchestrator, ask: Ask, container: Runner, other: Runner
) -> None:
    models = [container.model(capacity=4), other.model(capacity=1)]
    async with bridge(orchestrator, models):
        container.health = {"status": "ERROR"}
        await until(lambda: advertised(orchestrator) == 1)
        for _ in range(3):
            assert (await ask())[0] == 200
        assert len(other.seen) == 3
        container.health = {"status": "OK"}
        await until(lambda: advertised(orchestrator) == 5)
    assert IMAGES.model_id in json.dumps(other.seen[0].document)
