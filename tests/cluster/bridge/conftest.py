"""A bridge in this process, between a real orchestrator port and a backend that the test steers."""

import asyncio
import datetime
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before grpc is imported; it writes to stderr

import aiohttp
import pytest
from pydantic import SecretStr

from cluster.ai_models import ModelKey
from cluster.bridge.address import Address
from cluster.bridge.bridge import Bridge
from cluster.bridge.deadlines import Deadlines
from cluster.bridge.inputs import Inputs
from cluster.bridge.journal import Journal
from cluster.bridge.record import JobRecord
from cluster.bridge.registration import WorkerRegistration
from cluster.bridge.results import Delivery
from cluster.capacity import Capacity, ModelCapacity
from cluster.loopback import LoopbackOrchestrator
from cluster.loopback.certificate import ServerCertificate, make_certificate
from cluster.protocol import lp_rpc_pb2 as pb
from deployments.schemas.base import Chunk, Completed, MediaFile, Request, Result
from deployments.schemas.images import Image, ImagesResult

SECRET = "s3cret & more"
A = ModelKey("text-to-image", "org/a")
B = ModelKey("text-to-image", "org/b")
PNG = b"\x89PNG\r\n\x1a\n and so on"


def image_result(*seeds: int, data: bytes = PNG) -> ImagesResult:
    file = MediaFile(data=data, media_type="image/png")
    return ImagesResult(images=tuple(Image(file=file, seed=seed, nsfw=False) for seed in seeds))


class SteeredBackend:
    """A backend whose jobs end when the test says so, or raise what it gives."""

    def __init__(self) -> None:
        self.result: Result | Exception = image_result(7)
        self.first: list[Result | Exception] = []
        """What comes before `result`, one a job."""
        self.hold = asyncio.Event()
        self.hold.set()
        self.takes_s = 0.0
        self.started: list[Request] = []
        self.cancelled = 0
        self._news = asyncio.Condition()

    async def run(self, key: ModelKey, request: Request, *, timeout_s: float) -> Completed[Result]:
        assert key in (A, B)
        assert 0 < timeout_s <= 60
        async with self._news:
            self.started.append(request)
            self._news.notify_all()
        try:
            await self.hold.wait()
            await asyncio.sleep(self.takes_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        result = self.first.pop(0) if self.first else self.result
        if isinstance(result, Exception):
            raise result
        return Completed(result=result, replica="steered", compute_s=0.0)

    def stream(
        self, key: ModelKey, request: Request, *, timeout_s: float
    ) -> AsyncGenerator[Chunk, None]:
        assert timeout_s > 0
        raise AssertionError(f"{key} was not to stream {request}")

    async def wait_for_started(self, count: int) -> None:
        async with self._news:
            await self._news.wait_for(lambda: len(self.started) >= count)


@dataclass
class Running:
    """A running bridge."""

    bridge: Bridge
    backend: SteeredBackend
    registration: WorkerRegistration
    stop: asyncio.Event
    task: "asyncio.Task[None]"
    capacities: "asyncio.Queue[Capacity]"
    records: list[JobRecord] = field(default_factory=list)


class NoRegistration:
    """Nothing comes in; tests hand jobs to the bridge themselves."""

    def announce(self, capacity: Capacity) -> None:
        del capacity

    async def run(self) -> None:
        await asyncio.Event().wait()


def waiting(bridge: Bridge, key: ModelKey) -> int:
    """How many jobs wait for a slot of the model."""
    return len(bridge._execution.admission._waiting.get(key, []))


def capacity(**slots: int) -> Capacity:
    """`capacity(a=2)`: two slots for org/a."""
    return Capacity(
        models={
            ModelKey("text-to-image", f"org/{name}"): ModelCapacity(slots=count, warm=True)
            for name, count in slots.items()
        }
    )


@asynccontextmanager
async def running(
    address: Address,
    first: Capacity,
    *others: Address,
    secret: str = SECRET,
    pin: str | None = None,
    deadline_s: float = 60.0,
    grace_s: float = 10.0,
    queue_s: float = 0.1,
    journal: Journal | None = None,
    version: str = "0.9.1",
    read_hardware: Callable[[], list[pb.HardwareInformation]] = list,
) -> AsyncIterator[Running]:
    """Runs a bridge and stops it at the end, unless the test did."""
    backend, stop = SteeredBackend(), asyncio.Event()
    records: list[JobRecord] = []
    capacities: asyncio.Queue[Capacity] = asyncio.Queue()
    capacities.put_nowait(first)

    async def snapshots() -> AsyncIterator[Capacity]:
        while True:
            yield await capacities.get()

    async with Inputs() as inputs, Delivery(secret=SecretStr(secret)) as delivery:
        bridge = Bridge(
            backends={A: backend, B: backend},
            inputs=inputs,
            delivery=delivery,
            deadlines=Deadlines(default_s=deadline_s),
            grace_s=grace_s,
            queue_s=queue_s,
            journal=journal,
            on_finished=records.append,
        )
        registrations = [
            WorkerRegistration(
                address=where,
                secret=SecretStr(secret),
                version=version,
                pin=pin,
                on_job=bridge.accept,
                read_hardware=read_hardware,
            )
            for where in (address, *others)
        ]
        task = asyncio.create_task(
            bridge.run(registrations=registrations, snapshots=snapshots(), stop=stop)
        )
        try:
            yield Running(
                bridge=bridge,
                backend=backend,
                registration=registrations[0],
                stop=stop,
                task=task,
                capacities=capacities,
                records=records,
            )
        finally:
            backend.hold.set()
            stop.set()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def _ends_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every bridge waits for its last jobs at its end, and hardly a test has any."""
    monkeypatch.setattr("cluster.bridge.stream.LAST_JOBS_S", 0.2)


Ask = Callable[..., Coroutine[Any, Any, tuple[int, Any]]]


@pytest.fixture
async def orchestrator() -> AsyncIterator[LoopbackOrchestrator]:
    """A loopback orchestrator, whose strictness is part of every test."""
    async with LoopbackOrchestrator(secret=SECRET) as started:
        yield started
        assert started.faults == []


@pytest.fixture
async def ask(orchestrator: LoopbackOrchestrator) -> AsyncIterator[Ask]:
    """Sends a text-to-image request as a gateway's client does, for org/a unless told."""
    connector = aiohttp.TCPConnector(ssl=False, limit=0)
    async with aiohttp.ClientSession(orchestrator.url, connector=connector) as http:

        async def send(**request: object) -> tuple[int, Any]:
            body = {"prompt": "a cat", "model_id": "org/a", **request}
            async with http.post("/text-to-image", json=body) as response:
                return response.status, await response.json()

        yield send


def certificate_from_tomorrow() -> ServerCertificate:
    """What an orchestrator has whose clock is a day ahead, or since ours was set back."""

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Tomorrow":
            return super().now(tz) + datetime.timedelta(days=1)

    with patch("cluster.loopback.certificate.datetime.datetime", Tomorrow):
        return make_certificate("127.0.0.1")


def address(orchestrator: LoopbackOrchestrator) -> Address:
    return Address("127.0.0.1", orchestrator.port)


async def registered(orchestrator: LoopbackOrchestrator, count: int = 1) -> None:
    """Waits until so many workers are connected."""
    await orchestrator.wait_for_workers(lambda workers: len(workers) == count)
