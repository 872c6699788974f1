"""One container: what it answers reaches the job, and what it does wrong hurts nobody else."""

import asyncio
import logging
from contextlib import aclosing
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from cluster.ai_models import ModelKey
from cluster.backends import external
from cluster.backends.external import ExternalBackend
from cluster.errors import (
    ContainerRefused,
    DeadlinePassed,
    JobError,
    JobFailed,
    JobRejected,
    ReplicaLost,
)
from deployments.registry import PIPELINES
from deployments.schemas.base import Chunk, Completed, Request, Result
from tests.cluster.external.runner import (
    IMAGES,
    LLM,
    PNG,
    TOKEN,
    Runner,
    chunk,
    entry,
    events,
    raw_server,
)

Http = aiohttp.ClientSession


def request(key: ModelKey) -> Request:
    if key == LLM:
        messages = [{"role": "user", "content": "hi"}]
        return PIPELINES["llm"].request.parse({"messages": messages, "stream": True})
    return PIPELINES["text-to-image"].request.parse({"prompt": "a bear"})


async def run(backend: ExternalBackend, *, timeout_s: float = 60.0) -> Completed[Result]:
    return await backend.run(IMAGES, request(IMAGES), timeout_s=timeout_s)


async def stream(backend: ExternalBackend, *, timeout_s: float = 60.0) -> list[Chunk]:
    chunks = backend.stream(LLM, request(LLM), timeout_s=timeout_s)
    async with aclosing(chunks):
        return [chunk async for chunk in chunks]


async def failure(backend: ExternalBackend) -> JobError:
    with pytest.raises(JobError) as raised:
        await run(backend)
    return raised.value


async def test_a_result_says_where_it_came_from(container: Runner, http: Http) -> None:
    completed = await run(ExternalBackend(container.model(), http=http))
    assert completed.result.files[0].data == PNG
    assert completed.replica == container.url
    assert completed.compute_s > 0


def said(words: str) -> dict[str, Any]:
    return {"detail": {"msg": words}}


MISSING = {"detail": [{"loc": ["body", "prompt"], "msg": "Field required", "type": "missing"}]}


@pytest.mark.parametrize(
    ("status", "document", "kind", "text"),
    [
        (400, said("no such LoRA."), JobRejected, "X container returned 400: no such LoRA."),
        (413, said("too large"), ContainerRefused, "X container returned 413: too large"),
        (415, said("what is this"), ContainerRefused, "X container returned 415: what is this"),
        (422, MISSING, ContainerRefused, 'X container returned 422: {"detail": [{"loc"'),
        (500, said("Out of memory."), JobFailed, "X container returned 500: Out of memory."),
        (500, "a text", JobFailed, 'X container returned 500: "a text"'),
        (401, said("Invalid bearer token."), ReplicaLost, "returned 401: Invalid bearer token."),
        (503, said("insufficient capacity"), ReplicaLost, "returned 503: insufficient capacity"),
        (502, "bad gateway", ReplicaLost, "returned 502"),
        (404, said("Not Found"), ReplicaLost, "returned 404: Not Found"),
        (
            400,
            said("pipeline configured with org/b but called with org/a."),
            ReplicaLost,
            "called with org/a",
        ),
    ],
)
async def test_errors_in_the_workers_words(
    container: Runner, http: Http, status: int, document: Any, kind: type[JobError], text: str
) -> None:
    container.answer, container.status = document, status
    error = await failure(ExternalBackend(container.model(), http=http))
    assert type(error) is kind
    words = error.network_text("X")
    assert text in words
    assert words.startswith("insufficient capacity" if kind is ReplicaLost else "X container")
    assert container.url not in words, "addresses are the operator's business"


async def test_a_token_that_is_repeated_is_not_passed_on(
    container: Runner, http: Http, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    backend = ExternalBackend(container.model(token=TOKEN), http=http)
    for container.status in (401, 400, 500, 200):
        container.answer = said(f"{TOKEN} is wrong")
        assert TOKEN not in str(await failure(backend))
    backend = ExternalBackend(container.model(LLM, token=TOKEN), http=http)
    for answer in ({"error": TOKEN}, {"created": TOKEN}):
        container.answer = events(answer)
        with pytest.raises(JobError) as raised:
            await stream(backend)
        assert TOKEN not in str(raised.value)
    assert TOKEN not in caplog.text
    assert container.seen[-1].headers["Authorization"] == f"Bearer {TOKEN}"


async def test_what_a_container_says_cannot_forge_a_line_of_the_log(
    container: Runner, http: Http, caplog: pytest.LogCaptureFixture
) -> None:
    container.answer, container.status = said("no\nERROR all is lost\x1b[2J"), 404
    backend = ExternalBackend(container.model(), http=http)
    for _ in range(2):
        await failure(backend)
    assert "it answers jobs with 404: no ERROR all is lost[2J" in caplog.text


async def test_one_that_hangs_is_left_at_the_deadline(container: Runner, http: Http) -> None:
    async def hang(_: web.Request) -> web.Response:
        await asyncio.sleep(3600)
        raise AssertionError

    container.answer = hang
    backend = ExternalBackend(container.model(), http=http)
    with pytest.raises(DeadlinePassed):
        await run(backend, timeout_s=0.2)
    with pytest.raises(DeadlinePassed):
        await run(backend, timeout_s=-1.0)


async def test_one_that_drips_is_left_at_the_deadline(container: Runner, http: Http) -> None:
    async def drip(asked: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(asked)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.01)

    container.answer = drip
    with pytest.raises(DeadlinePassed):
        await run(ExternalBackend(container.model(), http=http), timeout_s=0.3)


async def test_a_cancelled_job_is_cancelled_there(container: Runner, http: Http) -> None:
    async def hang(_: web.Request) -> web.Response:
        await asyncio.sleep(3600)
        raise AssertionError

    container.answer = hang
    running = asyncio.create_task(run(ExternalBackend(container.model(), http=http)))
    while not container.seen:
        await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    while not container.cancelled:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("length", ["", "Content-Length: 1000000000\r\n"])
async def test_endless_data_is_read_up_to_the_bound(
    http: Http, monkeypatch: pytest.MonkeyPatch, length: str
) -> None:
    monkeypatch.setattr(external, "MAX_ANSWER_BYTES", 50_000)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{length}\r\n".encode()
    async with raw_server(head, again=b" " * 10_000) as url:
        error = await failure(ExternalBackend(entry(IMAGES, url), http=http))
    assert type(error) is JobFailed
    assert "larger than 50000 bytes" in str(error)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"what is HTTP?\r\n\r\n", "gave no answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n" + PNG, "gave no answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b", "gave no answer"),
        (b"HTTP/1.1 301 Moved\r\nLocation: http://elsewhere.example/\r\n\r\n", "returned 301"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "returned 204"),
        (b"", "broke during the job"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "broke during the job"),
    ],
)
async def test_no_answer_is_had_elsewhere(http: Http, answer: bytes, text: str) -> None:
    async with raw_server(answer) as url:
        error = await failure(ExternalBackend(entry(IMAGES, url), http=http))
    assert type(error) is ReplicaLost
    assert text in str(error)
    assert url not in str(error), "addresses are the operator's business"
    assert bool(error.dead) == ("broke" in text), "only a death may be the job's doing"


async def test_jobs_that_were_there_together_saw_one_death(container: Runner, http: Http) -> None:
    begun, over = asyncio.Semaphore(0), asyncio.Event()

    async def die(request: web.Request) -> web.Response:
        begun.release()
        await over.wait()
        assert request.transport
        request.transport.abort()
        return web.Response()

    container.answer = die
    backend = ExternalBackend(container.model(), http=http)
    together = [asyncio.create_task(failure(backend)) for _ in range(2)]
    for _ in together:
        await begun.acquire()
    over.set()
    errors = [*await asyncio.gather(*together), await failure(backend)]
    first, second, later = (error.dead for error in errors if isinstance(error, ReplicaLost))
    assert first == second
    assert later not in ("", first)


async def test_nobody_there_is_had_elsewhere(http: Http) -> None:
    async with raw_server(b"") as url:
        pass
    error = await failure(ExternalBackend(entry(IMAGES, url), http=http))
    assert type(error) is ReplicaLost
    assert not error.dead


async def test_a_stream_is_relayed_token_by_token(container: Runner, http: Http) -> None:
    more = asyncio.Event()

    async def wait() -> None:
        await more.wait()

    container.answer = events(b": comment", chunk(), chunk("a"), then=wait)
    chunks = ExternalBackend(container.model(LLM), http=http).stream(
        LLM, request(LLM), timeout_s=60.0
    )
    first = await anext(chunks)
    assert first.document() == chunk("a"), "it is here before the next one is there"
    assert not first.finishes
    more.set()
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)


async def test_nothing_is_read_after_the_end(container: Runner, http: Http) -> None:
    container.answer = events(chunk("a", "stop"), chunk("b"), b"data: [DONE]")
    chunks = await stream(ExternalBackend(container.model(LLM), http=http))
    assert [(chunk.document()["choices"][0]["delta"]["content"]) for chunk in chunks] == ["a"]
    container.answer = events(chunk("a"), b"data: [DONE]", chunk("b"))
    assert len(await stream(ExternalBackend(container.model(LLM), http=http))) == 1


async def test_a_stream_that_is_left_ends_there(container: Runner, http: Http) -> None:
    container.answer = events(chunk("a"), then=lambda: asyncio.sleep(3600))
    chunks = ExternalBackend(container.model(LLM), http=http).stream(
        LLM, request(LLM), timeout_s=60.0
    )
    # In a task of its own, as the bridge waits for the first chunk.
    await asyncio.create_task(anext_of(chunks))
    await chunks.aclose()
    while not container.cancelled:
        await asyncio.sleep(0.01)


async def anext_of(chunks: Any) -> Chunk:
    chunk: Chunk = await anext(chunks)
    return chunk


async def test_a_stream_ends_at_the_deadline_whoever_waits_for_it(
    container: Runner, http: Http
) -> None:
    container.answer = events(chunk("a"), then=lambda: asyncio.sleep(3600))
    backend = ExternalBackend(container.model(LLM), http=http)
    chunks = backend.stream(LLM, request(LLM), timeout_s=2.0)
    await asyncio.create_task(anext_of(chunks))
    with pytest.raises(DeadlinePassed):
        await asyncio.create_task(anext_of(chunks))


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ({"choices": []}, ReplicaLost),  # JSON where a stream was asked for
        (events({"error": "out of memory"}), JobFailed),
        (events(b"data: {"), ReplicaLost),
        (events(b"data: " + b"x" * 1_000_000), ReplicaLost),
        (events(*[b": more"] * 100), ReplicaLost),
    ],
)
async def test_a_broken_stream(
    container: Runner,
    http: Http,
    monkeypatch: pytest.MonkeyPatch,
    answer: Any,
    kind: type[JobError],
) -> None:
    monkeypatch.setattr(external, "MAX_GAP_BYTES", 500)
    container.answer = answer
    with pytest.raises(JobError) as raised:
        await stream(ExternalBackend(container.model(LLM), http=http))
    assert type(raised.value) is kind
