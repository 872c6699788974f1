"""A pipeline that is registered from here: its jobs over the whole path, and streams of it.

What `RayBackend.stream` does when a consumer leaves or a replica dies shows best on a replica
whose answers take as long as a test wants.
"""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from pydantic import SecretStr
from ray import serve, shutdown

from cluster import ray_cluster, serve_client
from cluster.ai_models import AIModel, ModelKey, load_ai_models
from cluster.backends.ray_serve import RayBackend
from cluster.bridge.address import Address
from cluster.bridge.bridge import Bridge
from cluster.bridge.deadlines import Deadlines
from cluster.bridge.inputs import Inputs
from cluster.bridge.registration import WorkerRegistration
from cluster.bridge.results import Delivery
from cluster.capacity import CapacityWatch
from cluster.errors import InsufficientCapacity, JobRejected
from cluster.loopback import LoopbackOrchestrator, documents
from cluster.loopback import pipelines as routes
from cluster.placement import UNBOUNDED, place
from cluster.serve_config import app_name, serve_config
from deployments.app import build
from deployments.model_args import ModelArgs
from deployments.registry import PIPELINES
from deployments.schemas.base import Chunk
from deployments.tiny_models.repository import write_repository
from tests.e2e.conftest import SECRET, RayCluster
from tests.e2e.spelling import SPELLING, SpellingRequest, SpellingResult

KEY = ModelKey(SPELLING.name, "org/alphabet")
SLOTS = 5
"""Of a replica, by Serve's default."""

TIME_S = 400.0
ENDLESS = SpellingRequest(text="ab", times=1_000_000)


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    """The pipeline's line in the registry, and its route at the development orchestrator."""
    route = routes.Pipeline(
        name=SPELLING.name,
        parameters={"model_id": str, "text": str, "times": int},
        answer=documents.Text,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PIPELINES, SPELLING.name, SPELLING)
        patch.setitem(routes.PIPELINES, SPELLING.name, route)
        patch.setitem(routes.CAPABILITIES, SPELLING.capability, SPELLING.name)
        yield


@pytest.fixture(scope="module")
def model(
    ray: RayCluster, _registered: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AIModel]:
    """A model of the pipeline on the tests' cluster, of which this process becomes a driver."""
    models_dir = tmp_path_factory.mktemp("alphabets")
    alphabet = json.dumps({"a": "Alfa", "b": "Bravo"})
    write_repository(
        models_dir,
        KEY.model_id,
        lambda directory: _write(directory / "alphabet.json", alphabet),
    )
    (model,) = load_ai_models(f"{SPELLING.name}:{KEY.model_id}:true").models
    config = serve_config(place([model], supply=UNBOUNDED), models_dir=models_dir, gpus=False)
    (application,) = config["applications"]
    ray_cluster.connect(ray.address)
    try:
        serve.start(proxy_location=config["proxy_location"])
        # Beside the other tests' applications, which a deployed config would remove.
        serve.run(build(ModelArgs(**application["args"])), name=app_name(KEY), route_prefix=None)
        yield model
        serve.delete(app_name(KEY))
    finally:
        shutdown()


def _write(file: Path, text: str) -> None:
    file.write_text(text)


@asynccontextmanager
async def bridge(orchestrator: LoopbackOrchestrator, model: AIModel) -> AsyncIterator[None]:
    """A bridge in this process, made of the same parts as the command's."""
    stop = asyncio.Event()
    async with Inputs() as inputs, Delivery(secret=SecretStr(SECRET)) as delivery:
        bridge = Bridge(
            backends={model.key: RayBackend()},
            inputs=inputs,
            delivery=delivery,
            deadlines=Deadlines(default_s=TIME_S),
            grace_s=10.0,
        )
        registration = WorkerRegistration(
            address=Address.parse(orchestrator.url),
            secret=SecretStr(SECRET),
            version="0.9.1",
            on_job=bridge.accept,
        )
        watch = CapacityWatch(models=[model], read_status=serve_client.model_status)
        running = asyncio.create_task(
            bridge.run(registrations=[registration], snapshots=watch.snapshots(), stop=stop)
        )
        try:
            await orchestrator.wait_for_workers(lambda workers: bool(workers))
            yield
        finally:
            stop.set()
            await running


async def test_its_jobs_run_like_any_others(model: AIModel) -> None:
    async with LoopbackOrchestrator(secret=SECRET) as orchestrator, bridge(orchestrator, model):
        (worker,) = orchestrator.workers
        assert {key: slots.capacity for key, slots in worker.slots.items()} == {KEY: 1}
        connector = aiohttp.TCPConnector(ssl=False)
        async with aiohttp.ClientSession(orchestrator.url, connector=connector) as http:
            answers = []
            for text in ("abba", "", "abc"):
                async with http.post("/spelling", json={"text": text}) as response:
                    answers.append((response.status, await response.text()))
    (good, spelled), (bad, empty), (worse, unknown) = answers
    assert (good, json.loads(spelled)) == (200, {"text": "Alfa Bravo Bravo Alfa"})
    assert (bad, worse) == (400, 400)
    assert "text: String should have at least 1 character" in empty
    assert "text: 'c' is not in this alphabet" in unknown
    assert orchestrator.faults == []


async def test_a_killed_replica_costs_no_job(
    model: AIModel, ray: RayCluster, caplog: pytest.LogCaptureFixture
) -> None:
    async with LoopbackOrchestrator(secret=SECRET) as orchestrator, bridge(orchestrator, model):
        connector = aiohttp.TCPConnector(ssl=False)
        async with aiohttp.ClientSession(orchestrator.url, connector=connector) as http:
            asked = asyncio.create_task(http.post("/spelling", json={"text": "ab", "times": 1500}))
            # A replica that dies before the request reaches it is no loss: Serve itself sends it
            # to the next one. This is about one that has begun.
            await asyncio.sleep(1.0)
            (pid,) = ray.replicas(KEY.model_id, SPELLING.name)
            os.kill(pid, signal.SIGKILL)
            response = await asked
            assert response.status == 200, await response.text()
            assert len((await response.json())["text"].split()) == 3000
    assert "died while it ran the job; running it again" in caplog.text
    assert ray.replicas(KEY.model_id, SPELLING.name) != {pid}


async def spelled(backend: RayBackend, text: str) -> str:
    completed = await backend.run(KEY, SpellingRequest(text=text), timeout_s=TIME_S)
    assert isinstance(completed.result, SpellingResult)
    return completed.result.text


async def test_a_stream_arrives_in_order_and_ends(model: AIModel) -> None:
    assert model.key == KEY
    request = SpellingRequest(text="ab", times=2)
    chunks = [chunk async for chunk in RayBackend().stream(KEY, request, timeout_s=TIME_S)]
    assert [chunk.document()["text"] for chunk in chunks] == ["Alfa", "Bravo", "Alfa", "Bravo", ""]
    assert [chunk.finishes for chunk in chunks] == [False] * 4 + [True]


@pytest.mark.parametrize("leaving", ["closes", "is cancelled"])
async def test_a_consumer_that_leaves_frees_its_slot(model: AIModel, leaving: str) -> None:
    backend = RayBackend()
    streams = [backend.stream(model.key, ENDLESS, timeout_s=TIME_S) for _ in range(SLOTS)]
    try:
        for stream in streams:
            await anext(stream)
        waiting = asyncio.create_task(spelled(backend, "a"))
        # Every slot is taken: it is not answered, however long one waits.
        await asyncio.wait({waiting}, timeout=0.5)
        assert not waiting.done()
        if leaving == "closes":
            await streams[0].aclose()
        else:
            reading = asyncio.create_task(_read_on(streams[0]))
            await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait({reading})
        assert await waiting == "Alfa"
    finally:
        for stream in streams:
            await stream.aclose()


async def _read_on(stream: AsyncIterator[Chunk], received: list[str] | None = None) -> None:
    async for chunk in stream:
        if received is not None:
            received.append(chunk.document()["text"])


@pytest.mark.parametrize(("text", "before"), [("c", []), ("abc", ["Alfa", "Bravo"])])
async def test_the_replicas_own_error_is_known_from_the_first_chunk_to_the_last(
    model: AIModel, text: str, before: list[str]
) -> None:
    received: list[str] = []
    stream = RayBackend().stream(model.key, SpellingRequest(text=text), timeout_s=TIME_S)
    with pytest.raises(JobRejected, match="text: 'c' is not in this alphabet"):
        await _read_on(stream, received)
    assert received == before


async def test_a_model_that_is_not_deployed(model: AIModel) -> None:
    other = model.key._replace(model_id="org/other")
    with pytest.raises(InsufficientCapacity, match="is not deployed"):
        await anext(RayBackend().stream(other, ENDLESS, timeout_s=TIME_S))


async def test_a_replica_that_dies_in_mid_stream_ends_it_and_the_next_one_works(
    model: AIModel, ray: RayCluster
) -> None:
    backend = RayBackend()
    (pid,) = ray.replicas(KEY.model_id, SPELLING.name)
    async with aclosing(backend.stream(model.key, ENDLESS, timeout_s=TIME_S)) as stream:
        await anext(stream)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(InsufficientCapacity, match=r"the replica of .* died"):
            await _read_on(stream)
    assert await spelled(backend, "b") == "Bravo"
    assert ray.replicas(KEY.model_id, SPELLING.name).isdisjoint({pid})
