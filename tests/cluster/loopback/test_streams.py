"""Answers of llm that are streamed from the worker to the caller."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from cluster.loopback import JobFailed, LoopbackOrchestrator
from tests.cluster.loopback.cases import COMPLETION, MESSAGES, NUMBERS, USAGE
from tests.cluster.loopback.wire import (
    MODEL,
    Caller,
    calling,
    capabilities,
    document_body,
    registered,
)

REQUEST = {"messages": MESSAGES, "stream": True}
LLM = NUMBERS["llm"]


def chunk(content: str = "hi", reason: str | None = None, **changed: Any) -> dict[str, Any]:
    """One event's document; `...` leaves a key out."""
    document = {
        "id": "chat-1",
        "model": MODEL,
        "created": 1_700_000_000,
        "choices": [
            {
                "index": 0,
                "finish_reason": reason,
                "delta": {"role": "assistant", "content": content},
            }
        ],
        **({"usage": USAGE} if reason else {}),
        **changed,
    }
    return {key: value for key, value in document.items() if value is not ...}


def event(document: object) -> bytes:
    """A document as an event."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + text.encode() + b"\n\n"


def choice(**changed: Any) -> dict[str, Any]:
    """A chunk whose choice is changed."""
    document = chunk()
    return {**document, "choices": [{**document["choices"][0], **changed}]}


def longest(size: int) -> bytes:
    """An event whose line has this many bytes, here and at the gateway."""
    line = event(chunk("", "", usage=USAGE))[:-2]
    return event(chunk("x" * (size - len(line)), "", usage=USAGE))


FIRST, LAST = event(chunk()), event(chunk("", "stop"))


async def in_use(caller: Caller) -> int:
    """Slots in use."""
    status = await caller.status()
    slots: int = status["capacity"]["llm"][MODEL]["in_use"]
    return slots


async def whole(caller: Caller) -> tuple[int, str, bytes]:
    """Posts a streamed request: status, type and the whole of what comes back."""
    async with caller.streaming(REQUEST) as reply:
        return reply.status, reply.content_type, await reply.read()


async def test_events_reach_the_caller_as_they_arrive(
    orchestrator: LoopbackOrchestrator, caller: Caller
) -> None:
    async with registered(orchestrator, capabilities(capability=LLM)) as worker:
        opening = asyncio.create_task(aiohttp_post(caller))
        job = await worker.next_job()
        assert json.loads(job.AIJobData.requestData)["request"]["stream"] is True
        assert await in_use(caller) == 1
        post = worker.post_events(job.taskId)
        post.send(FIRST[:20])
        async with await opening as reply:
            # The slot came back when the POST began, before there is any event.
            assert await in_use(caller) == 0
            post.send(FIRST[20:])
            assert (reply.status, reply.content_type) == (200, "text/event-stream")
            assert reply.headers["Cache-Control"] == "no-cache"
            assert reply.headers["Livepeer-Task-Id"] == "0"
            line = await reply.content.readline()
            assert json.loads(line.removeprefix(b"data: ")) == {
                **chunk(choices=[{"index": 0, "delta": {"role": "assistant", "content": "hi"}}]),
                # As Go's struct has it where a worker says nothing.
                "usage": {"completion_tokens": 0, "prompt_tokens": 0, "total_tokens": 0},
            }
            assert await reply.content.readline() == b"\n"
            post.send(LAST)
            rest = await reply.content.read()
            # The finishing chunk is the last, whether or not the worker's POST has ended, and a
            # gateway sends no [DONE].
            assert json.loads(rest.removeprefix(b"data: ")) == chunk("", "stop")
            assert rest.endswith(b"}\n\n")
        assert await post.finish() == (200, "OK")
        status = await caller.status()
        assert status["jobs"] == {"handed_out": 1, "answered": 1, "open": 0}
    assert (orchestrator.faults, orchestrator.late) == ([], [])


async def aiohttp_post(caller: Caller) -> aiohttp.ClientResponse:
    """Posts a streamed request; returns as soon as the response begins."""
    return await caller.http.post(f"{caller.url}/llm", json=REQUEST)


async def test_events_are_written_as_go_writes_them(
    orchestrator: LoopbackOrchestrator, caller: Caller
) -> None:
    async with registered(orchestrator, capabilities(capability=LLM)) as worker:
        request = asyncio.create_task(whole(caller))
        job = await worker.next_job()
        post = worker.post_events(job.taskId)
        post.send(event(chunk("<é>", "length", surprise=1)))
        assert await post.finish() == (200, "OK")
        _, _, body = await request
    assert body.decode() == (
        r'data: {"choices":[{"delta":{"content":"\u003cé\u003e","role":"assistant"},'
        '"finish_reason":"length","index":0}],"created":1700000000,"id":"chat-1",'
        '"model":"acme/painter","usage":{"completion_tokens":2,"prompt_tokens":3,'
        '"total_tokens":5}}\n\n'
    )


@pytest.mark.parametrize(
    ("pieces", "events"),
    [
        pytest.param([FIRST + FIRST + LAST], 3, id="in one piece"),
        pytest.param([bytes([byte]) for byte in FIRST + LAST], 2, id="byte by byte"),
        pytest.param([(FIRST + LAST).replace(b"\n", b"\r\n")], 2, id="carriage returns"),
        pytest.param([longest(65_535), LAST], 2, id="longest line"),
        pytest.param([event(choice(finish_reason="")), LAST], 2, id="empty finish_reason"),
        pytest.param([event(chunk(usage=USAGE)), LAST], 2, id="usage before the end"),
        pytest.param([LAST], 1, id="finished at once"),
    ],
)
async def test_streams_that_are_right(
    orchestrator: LoopbackOrchestrator, caller: Caller, pieces: list[bytes], events: int
) -> None:
    async with registered(orchestrator, capabilities(capability=LLM)) as worker:
        request = asyncio.create_task(whole(caller))
        post = worker.post_events((await worker.next_job()).taskId)
        post.send(*pieces)
        assert await post.finish() == (200, "OK")
        status, _, body = await request
        assert (status, body.count(b"\n\n")) == (200, events)
    assert orchestrator.faults == []


WRONG = [
    pytest.param(b"", 0, "without a finish_reason", id="nothing"),
    pytest.param(FIRST, 1, "after 1 event(s) without a finish_reason", id="no finishing chunk"),
    pytest.param(FIRST[:-2], 0, "ends within event", id="ends in a line"),
    pytest.param(FIRST + LAST[:-1], 2, "ends within event 2", id="ends without an empty line"),
    pytest.param(b"data:" + FIRST[6:] + LAST, 0, "does not start with 'data: '", id="no space"),
    pytest.param(FIRST + b"\n" + LAST, 1, "event 2 does not start with", id="two empty lines"),
    pytest.param(b": hello\n\n" + LAST, 0, "does not start with", id="comment"),
    pytest.param(b"event: a\n" + LAST, 0, "does not start with", id="event field"),
    pytest.param(FIRST[:-1] + LAST, 1, "no empty line after event 1", id="no empty line"),
    pytest.param(b"data: [DONE]\n\n" + LAST, 0, "not JSON", id="DONE too early"),
    pytest.param(LAST + b"data: [DONE]\n\n", 1, "follows the finishing chunk", id="DONE"),
    pytest.param(LAST + FIRST, 1, "follows the finishing chunk", id="event after the end"),
    pytest.param(LAST + b"\n", 1, "follows the finishing chunk", id="line after the end"),
    pytest.param(b'data: {"id":\n\n', 0, "not JSON", id="half a document"),
    pytest.param(b'data: "\xff"\n\n', 0, "not JSON", id="not UTF-8"),
    pytest.param(b"data: NaN\n\n", 0, "not JSON", id="NaN"),
    pytest.param(b"data: null\n\n", 0, "event 1: Input", id="null"),
    pytest.param(longest(65_536) + LAST, 0, "longer than 65535", id="long line"),
    pytest.param(b"data: " + b"x" * 70_000, 0, "longer than 65535", id="long line without end"),
    pytest.param(
        FIRST + event(chunk("<" * 20_000)), 1, "event 2 grows to 120", id="long once escaped"
    ),
    pytest.param(event(chunk(choices=[])), 0, "event 1: choices: List", id="no choices"),
    pytest.param(event(chunk(choices=...)), 0, "choices: Field required", id="no choices at all"),
    pytest.param(event(chunk("", "stop", usage=...)), 0, "has no usage", id="no usage"),
    pytest.param(event(chunk(usage={})), 0, "usage.prompt_tokens", id="empty usage"),
    pytest.param(event(chunk(created=1.5)), 0, "created", id="fractional time"),
    pytest.param(event(chunk(id=...)), 0, "id: Field required", id="no id"),
    pytest.param(event(choice(delta={"role": "a"})), 0, "delta.content", id="no content"),
    pytest.param(event(choice(delta={"content": "a"})), 0, "delta.role", id="no role"),
    pytest.param(event(COMPLETION), 0, "delta: Field required", id="message in place of delta"),
    pytest.param(event(choice(finish_reason=1)), 0, "finish_reason", id="reason as a number"),
    pytest.param(event(choice(index=None)), 0, "index", id="no index"),
]


@pytest.mark.parametrize(("body", "events", "says"), WRONG)
async def test_a_wrong_stream_ends_and_is_told(
    orchestrator: LoopbackOrchestrator, caller: Caller, body: bytes, events: int, says: str
) -> None:
    async with registered(orchestrator, capabilities(capability=LLM)) as worker:
        request = asyncio.create_task(whole(caller))
        job = await worker.next_job()
        post = worker.post_events(job.taskId)
        post.send(body)
        status, text = await post.finish()
        assert (status, says in text) == (400, True), text
        # What was right before has reached the caller, and nothing after it.
        assert (await request)[2].count(b"\n\n") == events
        assert [(fault.task_id, says in fault.reason) for fault in orchestrator.faults] == [
            (job.taskId, True)
        ]
        # The worker's connection lives, and so does the next job.
        again = asyncio.create_task(whole(caller))
        post = worker.post_events((await worker.next_job()).taskId)
        post.send(LAST)
        assert await post.finish() == (200, "OK")
        assert (await again)[0] == 200


async def test_a_stream_that_breaks_off_ends_for_the_caller(
    orchestrator: LoopbackOrchestrator, caller: Caller
) -> None:
    async with registered(orchestrator, capabilities(capability=LLM)) as worker:
        opening = asyncio.create_task(aiohttp_post(caller))
        post = worker.post_events((await worker.next_job()).taskId)
        post.send(FIRST)
        async with await opening as reply:
            await reply.content.readline()
            post.break_off()
            assert await reply.content.read() == b"\n"
        with pytest.raises((aiohttp.ClientError, ConnectionAbortedError)):
            await post.reply
    assert [fault.reason for fault in orchestrator.faults] == [
        "unexpected EOF: the connection ended before the body did"
    ]


async def test_a_caller_that_leaves_does_not_stop_the_worker(
    orchestrator: LoopbackOrchestrator, caller: Caller
) -> None:
    async with registered(orchestrator, capabilities(capability=LLM)) as worker:
        async with calling(orchestrator) as hasty:
            opening = asyncio.create_task(aiohttp_post(hasty))
            post = worker.post_events((await worker.next_job()).taskId)
            post.send(FIRST)
            (await opening).close()
        # More than fits into any buffer on the way.
        post.send(*[longest(60_000)] * 100, LAST)
        assert await post.finish() == (200, "OK")
        assert await in_use(caller) == 0
    assert (orchestrator.faults, orchestrator.late) == ([], [])


async def test_a_stream_that_takes_too_long_is_cut(
    orchestrator: LoopbackOrchestrator, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.loopback.ai_results._STREAM_S", 0.2)
    async with registered(orchestrator, capabilities(capability=LLM)) as worker:
        request = asyncio.create_task(whole(caller))
        post = worker.post_events((await worker.next_job()).taskId)
        post.send(FIRST)
        assert (await request)[2].count(b"\n\n") == 1
        status, text = await post.finish()
        assert (status, "not at its end after 0.2 s" in text) == (400, True)
    assert len(orchestrator.faults) == 1


async def test_streams_are_bounded(
    orchestrator: LoopbackOrchestrator, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.loopback.server.MAX_RESULT_BYTES", len(FIRST) + 1)
    async with registered(orchestrator, capabilities(capability=LLM)) as worker:
        request = asyncio.create_task(whole(caller))
        post = worker.post_events((await worker.next_job()).taskId)
        post.send(FIRST, LAST)
        status, text = await post.finish()
        assert (status, "larger than" in text) == (413, True)
        assert (await request)[2].count(b"\n\n") == 1
    assert len(orchestrator.faults) == 1


async def test_an_error_is_no_stream(orchestrator: LoopbackOrchestrator, caller: Caller) -> None:
    async with registered(orchestrator, capabilities(capability=LLM)) as worker:
        request = asyncio.create_task(caller.generate(REQUEST, pipeline="llm"))
        job = await worker.next_job()
        await worker.post_error(job.taskId, "llm container returned 400: too long")
        reply = await request
        assert (reply.status, reply.error) == (400, ": too long")
    assert orchestrator.faults == []


async def test_the_form_of_the_answer_is_what_was_asked_for(
    orchestrator: LoopbackOrchestrator, caller: Caller
) -> None:
    async with registered(orchestrator, capabilities(capability=LLM)) as worker:
        request = asyncio.create_task(caller.generate({"messages": MESSAGES}, pipeline="llm"))
        post = worker.post_events((await worker.next_job()).taskId)
        post.send(LAST)
        status, text = await post.finish()
        assert (status, "does not stream" in text) == (400, True)
        assert (await request).status == 500

        request = asyncio.create_task(caller.generate(REQUEST, pipeline="llm"))
        job = await worker.next_job()
        body = document_body(COMPLETION)
        status, text = await worker.post(job.taskId, body, pipeline="llm")
        assert (status, "would send no event" in text) == (400, True)
        assert (await request).status == 500
    assert len(orchestrator.faults) == 2


@pytest.mark.parametrize("pipeline", sorted(set(NUMBERS) - {"llm", "live-video-to-video", "byoc"}))
async def test_no_other_pipeline_streams(orchestrator: LoopbackOrchestrator, pipeline: str) -> None:
    async with registered(orchestrator, capabilities({})) as worker:
        sending = asyncio.create_task(
            orchestrator.send_job(
                worker=orchestrator.workers[0], pipeline=pipeline, request_data=b"{}"
            )
        )
        post = worker.post_events((await worker.next_job()).taskId)
        post.send(LAST)
        status, text = await post.finish()
        assert (status, "which has no streaming" in text) == (415, True)
        with pytest.raises(JobFailed, match="no streaming"):
            await sending
    assert len(orchestrator.faults) == 1


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("Authorization", "Bearer x", 401),
        ("Credentials", "guess", 401),
        ("TaskId", "x", 400),
    ],
)
async def test_a_stranger_changes_nothing(
    orchestrator: LoopbackOrchestrator, caller: Caller, header: str, value: str, status: int
) -> None:
    async with registered(orchestrator, capabilities(capability=LLM)) as worker:
        request = asyncio.create_task(whole(caller))
        job = await worker.next_job()
        post = worker.post_events(job.taskId, **{header: value})
        post.send(LAST)
        assert (await post.finish())[0] == status
        assert (await caller.status())["jobs"]["open"] == 1
        post = worker.post_events(job.taskId, **{"Content-Type": "Text/Event-Stream; charset=x"})
        post.send(LAST)
        assert await post.finish() == (200, "OK")
        assert (await request)[0] == 200
        # The job is answered; a second stream is taken and ignored.
        post = worker.post_events(job.taskId)
        post.send(LAST)
        assert await post.finish() == (200, "OK")
    assert len(orchestrator.faults) == 1
    assert [fault.task_id for fault in orchestrator.late] == [job.taskId]
