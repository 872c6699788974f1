"""One worker with both paths under measurement, and an orchestrator that gives it jobs.

One bridge serves two models: ours by Ray Serve, the reference's by the imitation. Registration,
admission, delivery, connection and orchestrator are the same for both, so that a difference
between their times is a difference between the two backends.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np
from numpy.typing import NDArray
from pydantic import SecretStr

from benchmarks.fixed_image import write_model
from benchmarks.reference import ReferenceBackend
from cluster import programs, ray_cluster, serve_client
from cluster.ai_models import AIModel, ModelKey, RayOptions
from cluster.backends.ray_serve import RayBackend
from cluster.bridge.address import Address
from cluster.bridge.bridge import Bridge
from cluster.bridge.deadlines import Deadlines
from cluster.bridge.event_stream import Stream
from cluster.bridge.inputs import Inputs
from cluster.bridge.job import Job
from cluster.bridge.record import JobRecord
from cluster.bridge.registration import WorkerRegistration
from cluster.bridge.results import Answer, Delivery
from cluster.bridge_settings import NEWEST_KNOWN_VERSION
from cluster.capacity import Capacity, CapacityWatch, ModelCapacity
from cluster.errors import LivepeerRayError
from cluster.http_api import HTTPSettings
from cluster.placement import UNBOUNDED, place
from cluster.serve_config import serve_config

SLOTS = 8
"""Jobs at a time, on either path."""

MODEL = AIModel(
    pipeline="text-to-image",
    model_id="benchmark/ours",
    warm=True,
    ray=RayOptions(num_gpus=0, max_ongoing_requests=SLOTS),
)
OURS = MODEL.key
REFERENCE = ModelKey("text-to-image", "benchmark/reference")

HTTP_MODEL = AIModel(
    pipeline="text-to-image",
    model_id="benchmark/http",
    warm=True,
    ray=RayOptions(num_gpus=0, max_ongoing_requests=64),
)
"""For requests over HTTP, up to 64 at a time."""

START_TIMEOUT_S = 120.0
BLOCK_TIMEOUT_S = 300.0
GRACE_S = 10.0


class BenchmarkFailed(LivepeerRayError):
    """Something did not work, so there are no figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Where one job's time went, in seconds."""

    total_s: float
    """From the job's arrival at the bridge to the acceptance of its answer."""
    compute_s: float
    """In the replica: the encoder, for the model takes no time."""
    deliver_s: float
    """From the answer's first byte to its acceptance, the orchestrator's parsing included."""

    @property
    def between_s(self) -> float:
        """The rest: the job's parsing, the Serve handle and the way through the object store."""
        return self.total_s - self.compute_s - self.deliver_s


def deploy(
    pixels: NDArray[np.uint8],
    *,
    models_dir: Path,
    model: AIModel = MODEL,
    http: HTTPSettings | None = None,
) -> None:
    """Starts a local Ray cluster with our replica on it; returns when that runs.

    Args:
        pixels: what it answers with.
        models_dir: an empty directory for it, to be kept until the cluster ends.
        model: what it is called, and its slots.
        http: the HTTP API, None for none.

    Raises:
        BenchmarkFailed: it does not start.
    """
    write_model(models_dir, model.model_id, pixels)
    ray_cluster.start_local()
    placement = place([model], supply=UNBOUNDED)
    config = serve_config(placement, models_dir=models_dir, gpus=False, http=http)
    config["applications"][0]["import_path"] = "benchmarks.fixed_image:build"
    serve_client.deploy(config)
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        status = serve_client.model_status((model,)).get(model.key)
        if status and status.failed:
            raise BenchmarkFailed(f"the replica does not start: {status.message}")
        if status and status.running:
            return
        time.sleep(0.25)
    raise BenchmarkFailed(f"no replica within {START_TIMEOUT_S:.0f} s")


class Rig:
    """Sends jobs as a gateway does and returns what the bridge measured."""

    def __init__(
        self, *, gateway: aiohttp.ClientSession, finished: "asyncio.Queue[tuple[JobRecord, Timing]]"
    ) -> None:
        """Takes a session at the orchestrator's url, and the bridge's records."""
        self._gateway = gateway
        self._finished = finished

    async def block(self, key: ModelKey, *, concurrency: int, jobs: int) -> list[Timing]:
        """Sends `jobs` jobs, `concurrency` at a time, and returns one timing each.

        Raises:
            BenchmarkFailed: a job had no result.
        """
        left = iter(range(jobs))

        async def client() -> None:
            for _ in left:
                await self._job(key)

        try:
            async with asyncio.timeout(BLOCK_TIMEOUT_S):
                await asyncio.gather(*(client() for _ in range(concurrency)))
                # The orchestrator answers its caller a moment before the worker learns of it.
                ended = [await self._finished.get() for _ in range(jobs)]
        except (TimeoutError, aiohttp.ClientError) as error:
            raise BenchmarkFailed(f"{key}: {type(error).__name__} {error}") from error
        for record, _ in ended:
            if record.outcome != "ok" or not record.delivered or record.model_id != key.model_id:
                raise BenchmarkFailed(f"a job failed: {record}")
        return [timing for _, timing in ended]

    async def _job(self, key: ModelKey) -> None:
        request = {"model_id": key.model_id, "prompt": "a photo", "width": 1024, "height": 1024}
        async with self._gateway.post(f"/{key.pipeline}", json=request) as response:
            if response.status != 200:
                raise BenchmarkFailed(f"a job got {response.status}: {await response.text()}")
            await response.read()


@contextlib.asynccontextmanager
async def running_rig(pixels: NDArray[np.uint8]) -> AsyncIterator[Rig]:
    """A bridge at work for a loopback orchestrator in a process of its own.

    Args:
        pixels: what the imitation answers with.

    Raises:
        BenchmarkFailed: a part does not start.
    """
    secret = secrets.token_hex(16)
    finished: asyncio.Queue[tuple[JobRecord, Timing]] = asyncio.Queue()
    delivery = _TimedDelivery(secret=SecretStr(secret))
    async with programs.orchestrator(secret=secret) as orchestrator, Inputs() as inputs, delivery:
        bridge = Bridge(
            backends={
                OURS: RayBackend(),
                REFERENCE: ReferenceBackend(pixels=pixels, threads=SLOTS),
            },
            inputs=inputs,
            delivery=delivery,
            deadlines=Deadlines(),
            grace_s=GRACE_S,
            on_finished=lambda record: finished.put_nowait((record, delivery.timing(record))),
        )
        registration = WorkerRegistration(
            address=Address.parse(orchestrator.url),
            secret=SecretStr(secret),
            version=NEWEST_KNOWN_VERSION,
            on_job=bridge.accept,
        )
        stop = asyncio.Event()
        working = asyncio.create_task(
            bridge.run(registrations=[registration], snapshots=_snapshots(), stop=stop)
        )
        try:
            connector = aiohttp.TCPConnector(ssl=False)  # the certificate is seconds old
            async with aiohttp.ClientSession(orchestrator.url, connector=connector) as gateway:
                await _registered(gateway, working)
                yield Rig(gateway=gateway, finished=finished)
        finally:
            stop.set()
            await working


class _TimedDelivery(Delivery):
    """The real delivery with a stopwatch."""

    def __init__(self, *, secret: SecretStr) -> None:
        super().__init__(secret=secret)
        self._deliver_s: dict[int, float] = {}

    async def deliver(self, job: Job, answer: Answer | Stream) -> bool:
        began = time.perf_counter()
        delivered = await super().deliver(job, answer)
        self._deliver_s[job.task_id] = time.perf_counter() - began
        return delivered

    def timing(self, record: JobRecord) -> Timing:
        """The times of a job that has just been delivered."""
        return Timing(
            total_s=record.total_s,
            compute_s=record.compute_s,
            deliver_s=self._deliver_s.pop(record.task_id),
        )


async def _snapshots() -> AsyncIterator[Capacity]:
    """What the cluster can do, as in the real bridge, and the imitation beside it."""
    imitation = ModelCapacity(slots=SLOTS, warm=True)
    watch = CapacityWatch(models=(MODEL,), read_status=serve_client.model_status)
    async for capacity in watch.snapshots():
        yield Capacity(models={**capacity.models, REFERENCE: imitation})


async def _registered(gateway: aiohttp.ClientSession, working: "asyncio.Task[None]") -> None:
    """Waits until the orchestrator knows both models."""
    wanted = {OURS.model_id, REFERENCE.model_id}
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                async with gateway.get("/status") as response:
                    capacity = (await response.json())["capacity"]
                if wanted <= capacity.get(OURS.pipeline, {}).keys():
                    return
                if working.done():
                    working.result()
                    raise BenchmarkFailed("the bridge ended")
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise BenchmarkFailed(f"not registered within {START_TIMEOUT_S:.0f} s") from None
