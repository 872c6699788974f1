"""More jobs than there are slots: every one is answered, and memory does not grow with them."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest
from aiohttp import web
from pydantic import SecretStr

from cluster.bridge import backlog
from cluster.bridge.address import Address
from cluster.bridge.bridge import Bridge
from cluster.bridge.deadlines import Deadlines
from cluster.bridge.inputs import Inputs
from cluster.bridge.job import MAX_JOB_BYTES, Job
from cluster.bridge.peer import Peer
from cluster.bridge.results import MAX_REFUSALS, Delivery
from cluster.capacity import Capacity
from tests.cluster.bridge.conftest import A, NoRegistration, SteeredBackend, capacity

JOBS = 10_000
MESSAGE_BYTES = 50_000
"""So that all of them together would be half a gigabyte."""


REFUSALS = (
    b"insufficient capacity: all 2 slots of",
    b"text-to-image container returned 400: the job has ",
)


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
        assert not refused or body.startswith(REFUSALS)
        self.answers["refused" if refused else "served"] += 1
        return web.Response()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Peer]:
        app = web.Application()
        app.router.add_post("/aiResults", self._take)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield Peer(address=Address("127.0.0.1", runner.addresses[0][1], tls=False))
        finally:
            await runner.cleanup()


async def two_slots() -> AsyncIterator[Capacity]:
    yield capacity(a=2)
    await asyncio.Event().wait()


def job(task_id: int, peer: Peer, *, message_bytes: int = MESSAGE_BYTES) -> Job:
    padding = b"y" * message_bytes
    return Job(
        task_id=task_id,
        pipeline="text-to-image",
        data=b'{"request": {"prompt": "x", "model_id": "org/a", "padding": "' + padding + b'"}}',
        peer=peer,
        received_at=asyncio.get_running_loop().time(),
    )


@asynccontextmanager
async def two_slots_and_a_peer(
    orchestrator: Orchestrator, backend: SteeredBackend
) -> AsyncIterator[tuple[Bridge, Peer]]:
    """A bridge whose jobs end when the context does; all are answered then."""
    stop = asyncio.Event()
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
        try:
            yield bridge, peer
        finally:
            orchestrator.answering.set()
            backend.hold.set()
            stop.set()
            await running


@pytest.mark.parametrize(
    ("jobs", "message_bytes"),
    [(JOBS, MESSAGE_BYTES), (30, 8 * 1024 * 1024), (12, 60 * 1024 * 1024)],
)
async def test_more_jobs_than_slots_are_answered_in_bounded_memory(
    caplog: pytest.LogCaptureFixture, jobs: int, message_bytes: int
) -> None:
    caplog.set_level("ERROR")
    orchestrator, backend = Orchestrator(), SteeredBackend()
    async with two_slots_and_a_peer(orchestrator, backend) as (bridge, peer):
        process = psutil.Process()
        before = process.memory_info().rss
        for task_id in range(jobs):
            await bridge.accept(job(task_id, peer, message_bytes=message_bytes))
            # As the stream's reader does between two messages.
            await asyncio.sleep(0)
        grown = process.memory_info().rss - before
    # Two hold a slot, four wait; both are served once the others are gone.
    served = 2 + 4 if message_bytes < MAX_JOB_BYTES else 0
    assert orchestrator.answers == Counter(served=served, refused=jobs - served)
    assert len(orchestrator.task_ids) == jobs
    assert orchestrator.most_at_once <= MAX_REFUSALS + 6
    # Of a job that has a slot or waits for one there is its text, and the same as parameters.
    assert grown < jobs * message_bytes / 4 + served * 2 * message_bytes


async def test_of_jobs_without_end_no_more_are_read_than_are_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backlog, "MAX_UNANSWERED", 50)
    orchestrator, backend = Orchestrator(), SteeredBackend()
    taken = 0

    async with two_slots_and_a_peer(orchestrator, backend) as (bridge, peer):

        async def read() -> None:
            nonlocal taken
            for task_id in range(200):
                taken += 1
                await bridge.accept(job(task_id, peer, message_bytes=10))

        reading = asyncio.create_task(read())
        while orchestrator.at_once < 50 - 6:
            await asyncio.sleep(0.01)
        await asyncio.wait({reading}, timeout=0.2)
        assert taken == 50
        orchestrator.answering.set()
        await reading
    assert orchestrator.answers == {"served": 2 + 4, "refused": 194}
