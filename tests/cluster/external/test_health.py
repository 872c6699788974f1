"""When a container gets jobs: only while it is healthy and answers them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from cluster.backends import external_probe
from cluster.backends.external import ExternalBackend
from cluster.errors import JobError
from deployments.hardware import GPU
from tests.cluster.external.runner import IMAGES, PNG, Runner, entry, images, raw_server
from tests.cluster.external.test_external import failure, run

INTERVAL_S = 0.02


@asynccontextmanager
async def watched(
    url: str, http: aiohttp.ClientSession, *, start_s: float = 60.0, rest_s: float = 60.0
) -> AsyncIterator[ExternalBackend]:
    """A backend whose container is asked again and again."""
    backend = ExternalBackend(
        entry(IMAGES, url), http=http, start_s=start_s, interval_s=INTERVAL_S, rest_s=rest_s
    )
    watch = asyncio.create_task(backend.health.watch())
    try:
        yield backend
    finally:
        watch.cancel()
        (ended,) = await asyncio.gather(watch, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError), ended


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60.0):
        while not condition():
            await asyncio.sleep(0.005)


async def asked_again(container: Runner, times: int = 2) -> None:
    before = container.checks
    await until(lambda: container.checks >= before + times)


async def test_it_gets_jobs_from_its_first_healthy_answer_on(
    container: Runner, http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    container.health = {"status": "LOADING"}
    async with watched(container.url, http) as backend:
        assert backend.slots() == 0
        assert backend.health.why_not == "it has not answered yet"
        await asked_again(container)
        assert backend.slots() == 0
        assert backend.health.why_not == "it is loading its model"
        container.health = {"status": "IDLE"}
        await until(lambda: backend.slots() == 2)
        assert backend.health.why_not == ""
    assert "is ready: runner 0.14.1, NVIDIA L40S" in caplog.text
    facts = backend.health.facts
    assert facts.version == "0.14.1"
    assert facts.gpus == (
        GPU(
            id="GPU-1",
            name="NVIDIA L40S",
            major=8,
            minor=9,
            memory_free_bytes=40_000_000_000,
            memory_total_bytes=48_000_000_000,
        ),
    )


async def test_two_failures_and_it_gets_none_until_it_is_healthy_again(
    container: Runner, http: aiohttp.ClientSession
) -> None:
    async with watched(container.url, http) as backend:
        await until(backend.slots)
        container.health = 500
        await until(lambda: not backend.slots())
        assert backend.health.why_not == "/health answers 500"
        container.health = {"status": "ERROR"}
        await until(lambda: "failed" in backend.health.why_not)
        container.version = "0.15.0"
        container.health = {"status": "OK"}
        await until(lambda: backend.slots() == 2)
        assert backend.health.facts.version == "0.15.0"
        backend.health.unreachable("once")
        assert backend.slots() == 2, "what was before is forgotten"


async def test_one_failure_changes_nothing(http: aiohttp.ClientSession) -> None:
    backend = ExternalBackend(entry(IMAGES, "http://nobody.invalid"), http=http)
    health = backend.health
    health._ready = True
    health.unreachable("once")
    assert backend.slots() == 2
    health.unreachable("twice")
    assert (backend.slots(), health.why_not) == (0, "twice")


async def test_one_that_computes_answers_nobody_meanwhile(
    container: Runner, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_probe, "TIMEOUT_S", 0.25)
    done = asyncio.Event()

    async def compute(_: web.Request) -> web.Response:
        container.silent = True
        await done.wait()
        container.silent = False
        return web.json_response(images(PNG))

    container.answer = compute
    async with watched(container.url, http) as backend:
        await until(backend.slots)
        job = asyncio.create_task(run(backend))
        await until(lambda: container.silent)
        await asked_again(container, 4)
        assert backend.slots() == 2
        done.set()
        await job
        container.silent = True
        await until(lambda: not backend.slots())
        assert "does not answer within" in backend.health.why_not


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", "/health answers what is not JSON"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "what answers /health is no runner"),
        (b"HTTP/1.1 301 Moved\r\nLocation: /x\r\n\r\n", "/health answers 301"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", "/health answers more than 65536"),
        (b"what is HTTP?\r\n\r\n", "/health: 400"),
    ],
)
async def test_what_is_no_health(http: aiohttp.ClientSession, answer: bytes, why: str) -> None:
    async with raw_server(answer) as url, watched(url, http) as backend:
        await until(lambda: backend.health.why_not != "it has not answered yet")
        assert backend.health.why_not.startswith(why)
        assert backend.slots() == 0


async def test_one_that_never_becomes_healthy_is_an_error_once(
    container: Runner, http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    container.health = 503
    async with watched(container.url, http, start_s=0.01):
        await asked_again(container, 4)
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert errors == [
        f"{IMAGES} at {container.url} is not healthy after 0 s: /health answers 503; it is asked on"
    ]


@pytest.mark.parametrize("told", [{}, {"gpu_info": {"0": {"id": "x"}}}, {"gpu_info": None}, []])
async def test_one_that_does_not_tell_of_itself_is_served_all_the_same(
    container: Runner, http: aiohttp.ClientSession, told: Any
) -> None:
    container.facts = told
    async with watched(container.url, http) as backend:
        await until(backend.slots)
        assert (backend.health.facts.version, backend.health.facts.gpus) == ("", ())


async def test_one_for_another_model_is_said(
    container: Runner, http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    container.facts = {"pipeline": "llm", "model_id": "org/b", "version": "1", "gpu_info": {}}
    async with watched(container.url, http) as backend:
        await until(backend.slots)
    assert "says that it serves 'llm' 'org/b'; the aiModels.json says text-to-image org/a" in (
        caplog.text
    )


async def test_answers_that_are_none_cost_it_a_rest(
    container: Runner, http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched(container.url, http) as backend:
        await until(backend.slots)
        container.status = 401
        await failure(backend)
        container.status = 200
        await run(backend)
        container.status = 401
        await failure(backend)
        assert backend.slots() == 2, "one in a row"
        await failure(backend)
        assert backend.slots() == 0
        assert "it answers jobs with 401" in backend.health.why_not
        await asked_again(container)
        assert backend.slots() == 0, "its health says nothing of that"
    assert caplog.text.count("gets no jobs for 60 s") == 1


async def test_it_is_tried_again_after_its_rest(
    container: Runner, http: aiohttp.ClientSession
) -> None:
    async with watched(container.url, http, rest_s=0.1) as backend:
        await until(backend.slots)
        container.answer = images(b"not a PNG")
        for _ in range(2):
            await failure(backend)
        await until(backend.slots)
        container.answer = images(PNG)
        await run(backend)
        container.status = 401
        await failure(backend)
        assert backend.slots(), "a good answer makes up for the bad ones"


@pytest.mark.parametrize("status", [400, 413, 422, 429, 500, 503])
async def test_what_is_the_jobs_fault_or_nobodys_costs_it_nothing(
    container: Runner, http: aiohttp.ClientSession, status: int
) -> None:
    async with watched(container.url, http) as backend:
        await until(backend.slots)
        container.status = status
        for _ in range(3):
            await failure(backend)
        assert backend.slots() == 2


async def test_one_that_dies_under_its_jobs_is_noticed_by_them(
    container: Runner, http: aiohttp.ClientSession
) -> None:
    backend = ExternalBackend(container.model(), http=http)
    backend.health._ready = True
    async with raw_server(b"") as url:
        backend._url = url
        for _ in range(2):
            with pytest.raises(JobError):
                await run(backend)
    assert backend.slots() == 0
