"""More jobs than there are slots: every one is answered, and memory does not grow with them."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest
from aiohttp import web
from pydantic import SecretStr

from cluster.bridge.address import Address
from cluster.bridge.bridge import Bridge
from cluster.bridge.deadlines import Deadlines
from cluster.bridge.inputs import Inputs
from cluster.bridge.job import Job
from cluster.bridge.peer import Peer
from cluster.bridge.results import MAX_REFUSALS, Delivery
from cluster.capacity import Capacity
from tests.cluster.bridge.conftest import A, SteeredBackend, capacity

JOBS = 10_000
MESSAGE_BYTES = 50_000
"""So that all of them together would be half a gigabyte."""


class Orchestrator:
    """An /aiResults that counts; in plaintext, since TLS would take most of the time."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        self.task_ids: set[str] = set()
        self.at_once = 0
        self.most_at_once = 0
        self.answering = asyncio.Event()

    async def _take(self, request: web.Request) -> web.Response:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        body = await request.read()
        await self.answering.wait()
        self.at_once -= 1
        assert request.headers["TaskId"] not in self.task_ids
        self.task_ids.add(request.headers["TaskId"])
        refused = request.content_type == "livepeer/ai-worker-error"
        assert not refused or body.startswith(b"insufficient capacity: all 2 slots of")
        self.answers["refused" if refused else "served"] += 1
        return web.Response()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Peer]:
        app = web.Application()
        app.router.add_post("/aiResults", self._take)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield Peer(address=Address("127.0.0.1", runner.addresses[0][1], tls=False))
        await runner.cleanup()


class NoRegistration:
    """The test hands jobs to the bridge itself."""

    def announce(self, capacity: Capacity) -> None:
        del capacity

    async def run(self) -> None:
        await asyncio.Event().wait()


async def two_slots() -> AsyncIterator[Capacity]:
    yield capacity(a=2)
    await asyncio.Event().wait()


def job(task_id: int, peer: Peer) -> Job:
    request = {"prompt": "x" * 100, "model_id": "org/a", "padding": "y" * MESSAGE_BYTES}
    return Job(
        task_id=task_id,
        pipeline="text-to-image",
        data=json.dumps({"request": request}).encode(),
        peer=peer,
        received_at=asyncio.get_running_loop().time(),
    )


async def test_ten_thousand_jobs_are_answered_in_bounded_memory(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("ERROR")
    orchestrator, backend, stop = Orchestrator(), SteeredBackend(), asyncio.Event()
    async with (
        orchestrator.running() as peer,
        Inputs() as inputs,
        Delivery(secret=SecretStr("s3cret")) as delivery,
    ):
        bridge = Bridge(
            backends={A: backend},
            inputs=inputs,
            delivery=delivery,
            deadlines=Deadlines(default_s=60.0),
            grace_s=60.0,
            queue_s=60.0,
        )
        running = asyncio.create_task(
            bridge.run(registrations=[NoRegistration()], snapshots=two_slots(), stop=stop)
        )
        await asyncio.sleep(0.01)
        backend.hold.clear()
        process = psutil.Process()
        before = process.memory_info().rss
        for task_id in range(JOBS):
            bridge.accept(job(task_id, peer))
            # As the stream's reader does between two messages.
            await asyncio.sleep(0)
        grown = process.memory_info().rss - before
        orchestrator.answering.set()
        backend.hold.set()
        stop.set()
        await running
    # Two hold a slot, four wait; both are served once the others are gone.
    assert orchestrator.answers == {"served": 2 + 4, "refused": JOBS - 2 - 4}
    assert len(orchestrator.task_ids) == JOBS
    assert orchestrator.most_at_once <= MAX_REFUSALS + 6
    assert grown < JOBS * MESSAGE_BYTES / 4
