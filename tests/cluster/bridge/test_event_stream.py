"""Streamed answers on the wire: begun with a chunk in hand, exact, never sent twice."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr

from cluster.ai_models import ModelKey
from cluster.bridge.address import Address
from cluster.bridge.bridge import Bridge
from cluster.bridge.deadlines import Deadlines
from cluster.bridge.event_stream import event
from cluster.bridge.inputs import Inputs
from cluster.bridge.job import Job
from cluster.bridge.peer import Peer, identify
from cluster.bridge.record import JobRecord
from cluster.bridge.results import Delivery
from cluster.capacity import Capacity, ModelCapacity
from cluster.errors import InsufficientCapacity, JobRejected
from cluster.loopback.certificate import make_certificate
from deployments.schemas.base import Chunk, Completed, Request, Result
from deployments.schemas.llm import Completion, LLMChunk, LLMRequest, Usage
from tests.cluster.bridge.conftest import NoRegistration, waiting

CHAT = ModelKey("llm", "org/chat")
PATIENCE_S = 10.0


def chunk(text: str, finish_reason: str = "", tokens: int = 1) -> LLMChunk:
    return LLMChunk(
        completion=Completion(id="chatcmpl-1", model=CHAT.model_id, created_s=1_700_000_000),
        text=text,
        finish_reason=finish_reason,
        usage=Usage(prompt_tokens=3, completion_tokens=tokens),
        replica="chatty",
        compute_s=float(tokens),
    )


class Chat:
    """A backend whose streams yield what the test puts in, and raise if that is an error."""

    def __init__(self) -> None:
        self.script: asyncio.Queue[Chunk | Exception | None] = asyncio.Queue()
        """None ends the stream."""
        self.requests: list[Request] = []
        self.open = 0
        """Streams that were begun and not closed."""
        self._kept: list[AsyncGenerator[Chunk, None]] = []
        """So that only the bridge closes them, and not the garbage collector."""

    def say(self, *steps: Chunk | Exception | None) -> None:
        for step in steps:
            self.script.put_nowait(step)

    async def run(self, key: ModelKey, request: Request, *, timeout_s: float) -> Completed[Result]:
        raise AssertionError(f"{key} was to stream {request}, for {timeout_s} s")

    def stream(
        self,
        key: ModelKey,
        request: Request,
        *,
        timeout_s: float,
    ) -> AsyncGenerator[Chunk, None]:
        assert key == CHAT
        assert timeout_s > 0
        self.requests.append(request)
        self._kept.append(self._play())
        return self._kept[-1]

    async def _play(self) -> AsyncGenerator[Chunk, None]:
        self.open += 1
        try:
            while (step := await self.script.get()) is not None:
                if isinstance(step, Exception):
                    raise step
                yield step
        finally:
            self.open -= 1


class Orchestrator:
    """A /aiResults that hands on each line as it comes."""

    def __init__(self) -> None:
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.lines: asyncio.Queue[bytes] = asyncio.Queue()
        self.break_off = False
        """Whether to close the connection at the first line."""
        self.port = 0

    async def _take(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(dict(request.headers))
        body = b""
        async for line in request.content:
            body += line
            self.lines.put_nowait(line)
            if self.break_off:
                assert request.transport is not None
                request.transport.abort()
                break
        self.bodies.append(body)
        return web.Response()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Peer]:
        app = web.Application()
        app.router.add_post("/aiResults", self._take)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        certificate = make_certificate("127.0.0.1")
        site = web.TCPSite(runner, "127.0.0.1", self.port, ssl_context=certificate.tls)
        await site.start()
        self.port = runner.addresses[0][1]
        try:
            yield await identify(Address("127.0.0.1", self.port))
        finally:
            await runner.cleanup()


class Rig:
    """A bridge that serves one chat model to one orchestrator, with one slot."""

    def __init__(self, *, peer: Peer, orchestrator: Orchestrator) -> None:
        self.peer = peer
        self.orchestrator = orchestrator
        self.chat = Chat()
        self.records: asyncio.Queue[JobRecord] = asyncio.Queue()
        self.stop = asyncio.Event()
        self.bridge: Bridge

    async def job(self, task_id: int = 1, **parameters: Any) -> Job:
        """Hands a streaming job to the bridge."""
        messages = [{"role": "user", "content": "hi"}]
        request = {"messages": messages, "model": CHAT.model_id, "stream": True, **parameters}
        job = Job(
            task_id=task_id,
            pipeline="llm",
            data=json.dumps({"input_url": "", "request": request}).encode(),
            peer=self.peer,
            received_at=asyncio.get_running_loop().time(),
        )
        await self.bridge.accept(job)
        return job

    async def record(self) -> JobRecord:
        return await asyncio.wait_for(self.records.get(), PATIENCE_S)

    async def line(self) -> bytes:
        return await asyncio.wait_for(self.orchestrator.lines.get(), PATIENCE_S)


@asynccontextmanager
async def rig(*, deadline_s: float = 60.0, grace_s: float = 5.0) -> AsyncIterator[Rig]:
    orchestrator = Orchestrator()
    async with (
        orchestrator.running() as peer,
        Inputs() as inputs,
        Delivery(secret=SecretStr("s3cret")) as delivery,
    ):
        rig = Rig(peer=peer, orchestrator=orchestrator)
        rig.bridge = Bridge(
            backends={CHAT: rig.chat},
            inputs=inputs,
            delivery=delivery,
            deadlines=Deadlines(default_s=deadline_s),
            grace_s=grace_s,
            on_finished=rig.records.put_nowait,
        )
        has_capacity = asyncio.Event()

        async def snapshots() -> AsyncIterator[Capacity]:
            yield Capacity(models={CHAT: ModelCapacity(slots=1, warm=True)})
            has_capacity.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(
            rig.bridge.run(registrations=[NoRegistration()], snapshots=snapshots(), stop=rig.stop)
        )
        await has_capacity.wait()
        try:
            yield rig
        finally:
            rig.stop.set()
            await task


def events(body: bytes) -> list[dict[str, Any]]:
    """What the orchestrator's scanner makes of a body."""
    assert body.endswith(b"\n\n")
    lines = body.removesuffix(b"\n\n").split(b"\n\n")
    assert all(line.startswith(b"data: ") for line in lines)
    return [json.loads(line.removeprefix(b"data: ")) for line in lines]


def reasons(body: bytes) -> list[str]:
    return [found["choices"][0]["finish_reason"] for found in events(body)]


async def test_a_stream_is_written_as_the_orchestrator_reads_it() -> None:
    async with rig() as running:
        running.chat.say(chunk("Hé"), chunk("", "stop", 2))
        await running.job()
        record = await running.record()
    assert record.delivered
    assert (record.outcome, record.model_id) == ("ok", CHAT.model_id)
    assert (record.replica, record.compute_s) == ("chatty", 2.0)
    (headers,) = running.orchestrator.headers
    assert headers["Content-Type"] == "text/event-stream"
    assert headers["TaskId"] == "1"
    assert headers["Pipeline"] == "llm"
    assert headers["Authorization"] == "Livepeer-AI-Worker-1.0"
    assert "Content-Length" not in headers
    head = '{"id":"chatcmpl-1","model":"org/chat","created":1700000000,"choices":[{"index":0,'
    assert running.orchestrator.bodies == [
        (
            f'data: {head}"delta":{{"role":"assistant","content":"H\\u00e9"}},"finish_reason":'
            '""}],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}\n\n'
            f'data: {head}"delta":{{"role":"assistant","content":""}},"finish_reason":"stop"}}],'
            '"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'
        ).encode()
    ]
    (request,) = running.chat.requests
    assert isinstance(request, LLMRequest)
    assert request.stream


async def test_each_chunk_is_sent_when_it_is_there() -> None:
    async with rig() as running:
        await running.job()
        for text in ("a", "b", "c"):
            running.chat.say(chunk(text))
            assert f'"content":"{text}"'.encode() in await running.line()
            assert await running.line() == b"\n"
        running.chat.say(chunk("", "length"))
        assert (await running.record()).delivered


@pytest.mark.parametrize(
    ("first", "text"),
    [
        (JobRejected("messages: too long"), "llm container returned 400: messages: too long"),
        (InsufficientCapacity("the replica died"), "insufficient capacity: the replica died"),
        (None, "llm container returned 500: the replica ended the stream"),
    ],
)
async def test_a_failure_before_the_first_chunk_is_answered_as_an_error(
    first: Exception | None, text: str
) -> None:
    async with rig() as running:
        await running.job()
        assert running.orchestrator.headers == []
        running.chat.say(first)
        record = await running.record()
    (headers,) = running.orchestrator.headers
    assert headers["Content-Type"] == "livepeer/ai-worker-error"
    assert running.orchestrator.bodies[0].decode().startswith(text)
    assert record.outcome.startswith(text)
    assert running.chat.open == 0


async def test_no_chunk_within_the_deadline_is_answered_as_an_error() -> None:
    async with rig(deadline_s=0.2) as running:
        await running.job()
        record = await running.record()
    assert "no result within" in record.outcome
    assert running.orchestrator.headers[0]["Content-Type"] == "livepeer/ai-worker-error"
    assert running.chat.open == 0


@pytest.mark.parametrize("end", [InsufficientCapacity("the replica died"), KeyError("x"), None])
async def test_a_stream_that_breaks_ends_with_an_error_as_its_finish_reason(
    end: Exception | None,
) -> None:
    async with rig() as running:
        running.chat.say(chunk("a"), chunk("b", tokens=2), end)
        await running.job()
        record = await running.record()
    (body,) = running.orchestrator.bodies
    assert reasons(body) == ["", "", "error"]
    assert events(body)[-1]["usage"]["completion_tokens"] == 2
    assert record.delivered
    assert record.outcome != "ok"


async def test_nothing_follows_the_finishing_chunk() -> None:
    async with rig() as running:
        running.chat.say(chunk("a"), chunk("", "stop"), chunk("too late"), None)
        await running.job()
        await running.record()
        assert running.chat.open == 0
    assert reasons(running.orchestrator.bodies[0]) == ["", "stop"]


async def test_the_slot_is_held_until_the_stream_ends() -> None:
    async with rig() as running:
        running.chat.say(chunk("a"))
        await running.job(1)
        await running.line()
        await running.job(2)
        while not waiting(running.bridge, CHAT):
            await asyncio.sleep(0.01)
        assert running.chat.open == 1, "the second waits"
        running.chat.say(chunk("", "stop"))
        assert (await running.record()).task_id == 1
        running.chat.say(chunk("", "stop"))
        record = await running.record()
        assert (record.task_id, record.outcome) == (2, "ok")


async def test_a_stream_that_broke_off_is_stopped_and_never_sent_again() -> None:
    async with rig() as running:
        running.orchestrator.break_off = True
        running.chat.say(chunk("a"))
        await running.job()
        record = await running.record()
        assert not record.delivered
        assert running.chat.open == 0
    assert len(running.orchestrator.headers) == 1


async def test_an_orchestrator_that_is_away_for_a_moment_gets_its_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.bridge.results.RETRY_FIRST_S", 0.01)
    tries = 0
    post = Delivery._post

    async def refused_once(self: Delivery, job: Job, answer: Any) -> tuple[int, str]:
        nonlocal tries
        tries += 1
        if tries == 1:
            # Nobody listens on port 1; the connection is really refused.
            nowhere = replace(job.peer, address=Address("127.0.0.1", 1))
            return await post(self, replace(job, peer=nowhere), answer)
        return await post(self, job, answer)

    monkeypatch.setattr(Delivery, "_post", refused_once)
    async with rig() as running:
        running.chat.say(chunk("a"), chunk("", "stop"))
        await running.job()
        assert (await running.record()).delivered
    assert tries == 2
    assert reasons(running.orchestrator.bodies[0]) == ["", "stop"]


async def test_a_stream_ends_at_its_jobs_deadline() -> None:
    async with rig(deadline_s=0.5) as running:
        running.chat.say(chunk("a"))
        await running.job()
        record = await running.record()
        assert running.chat.open == 0
    assert reasons(running.orchestrator.bodies[0]) == ["", "length"]
    assert record.delivered


async def test_a_stream_outlives_the_time_that_a_reply_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.bridge.results.STALL_TIMEOUT_S", 1.0)
    async with rig() as running:
        running.chat.say(chunk("a"))
        await running.job()
        await running.line()
        await asyncio.sleep(2.0)
        running.chat.say(chunk("", "stop"))
        assert (await running.record()).delivered


async def test_who_does_not_reply_to_a_finished_stream_holds_no_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.bridge.results.STALL_TIMEOUT_S", 0.2)
    go_on = asyncio.Event()

    async def freeze(*_: object) -> web.StreamResponse:
        await go_on.wait()
        return web.Response()

    monkeypatch.setattr(Orchestrator, "_take", freeze)
    async with rig() as running:
        running.chat.say(chunk("a"), chunk("", "stop"))
        await running.job()
        assert not (await running.record()).delivered
        assert not running.bridge.in_flight[CHAT]
        go_on.set()


async def test_the_end_of_the_bridge_ends_its_streams() -> None:
    async with rig(grace_s=0.05) as running:
        running.chat.say(chunk("a"))
        await running.job()
        await running.line()
        running.stop.set()
        assert (await running.record()).delivered
        assert running.chat.open == 0
    assert reasons(running.orchestrator.bodies[0]) == ["", "length"]


def test_a_line_that_the_orchestrator_could_not_read_is_an_error() -> None:
    event(chunk("é" * 8_000))
    with pytest.raises(ValueError, match="more than 49152"):
        event(chunk("é" * 8_200))
