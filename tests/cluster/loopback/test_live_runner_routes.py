"""The way through the orchestrator to a live runner, whose end of it is a plain socket."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from cluster.loopback import LoopbackOrchestrator, live_runner_routes
from tests.cluster.loopback.wire import SECRET, Caller

Runner = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
"""Takes the head of a request and writes an answer, after which its connection ends."""

DONE = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone"
ADDED = ("Accept", "Accept-Encoding", "User-Agent")
"""By aiohttp, unless it is told otherwise."""


@asynccontextmanager
async def running(runner: Runner) -> AsyncIterator[str]:
    """Its url."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await runner(await reader.readuntil(b"\r\n\r\n"), writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def register(orchestrator: LoopbackOrchestrator, url: str) -> str:
    """Registers a runner of one session; the path to it."""
    heartbeat = {"app": "llm/org/a", "runner_url": url, "mode": "single-shot", "capacity": 1}
    runners = orchestrator.live_runners
    answer = runners.heartbeat(
        json.dumps(heartbeat).encode(), authorization=SECRET, orchestrator=""
    )
    return f"/apps/{answer['runner_id']}/app/llm"


def busy(orchestrator: LoopbackOrchestrator) -> int:
    (runner,) = orchestrator.live_runners.discovery(orchestrator="")
    used: int = runner["capacity_used"]
    return used


async def said(log: pytest.LogCaptureFixture, text: str) -> None:
    async with asyncio.timeout(20):
        while text not in log.text:
            await asyncio.sleep(0.01)


async def test_headers_pass_as_they_were_sent(
    orchestrator: LoopbackOrchestrator, caller: Caller
) -> None:
    heads: list[bytes] = []

    async def runner(head: bytes, writer: asyncio.StreamWriter) -> None:
        heads.append(head)
        writer.write(
            b"HTTP/1.1 201 Created\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Name: caf\xe9\r\n"
            b"Connection: close, X-Hop\r\nX-Hop: 1\r\nContent-Length: 4\r\n\r\ndone"
        )

    async with running(runner) as url:
        path = register(orchestrator, url)
        sent = [("X-Many", "1"), ("X-Many", "2"), ("X-Name", "caf\u00e9"), ("X-Forwarded-For", "h")]
        async with caller.http.post(
            caller.url + path, headers=sent, skip_auto_headers=[*ADDED, "Content-Type"], data=b"{}"
        ) as answer:
            assert (answer.status, await answer.read()) == (201, b"done")
            theirs = [pair for pair in answer.raw_headers if pair[0] not in (b"date", b"server")]
    assert sorted(theirs) == [
        (b"content-length", b"4"),
        (b"set-cookie", b"a=1"),
        (b"set-cookie", b"b=2"),
        (b"x-name", b"caf\xe9"),
    ]
    lines = heads[0].lower().split(b"\r\n")[1:-2]
    assert sorted(line for line in lines if not line.startswith((b"host:", b"livepeer-"))) == [
        b"content-length: 2",
        b"x-many: 1",
        b"x-many: 2",
        b"x-name: caf\xc3\xa9",
    ]


async def test_a_session_is_free_as_soon_as_its_answer_is_there(
    orchestrator: LoopbackOrchestrator, caller: Caller
) -> None:
    async def runner(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(DONE)

    async with running(runner) as url:
        path = register(orchestrator, url)
        for _ in range(10):
            assert await caller.get(path) == (200, b"done")
            assert busy(orchestrator) == 0


async def test_a_runner_that_cannot_be_reached_is_a_bad_gateway(
    orchestrator: LoopbackOrchestrator, caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = register(orchestrator, "http://127.0.0.1:99999/a")
    status, why = await caller.get(path)
    assert (status, busy(orchestrator)) == (502, 0)
    assert b"99999" in why
    await said(caplog, "request 0 failed: 127.0.0.1:99999")


async def test_an_answer_that_is_cut_off_is_cut_off(
    orchestrator: LoopbackOrchestrator, caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def runner(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(DONE.replace(b"4", b"5"))

    async with running(runner) as url:
        with pytest.raises(aiohttp.ClientPayloadError):
            await caller.get(register(orchestrator, url))
    await said(caplog, "request 0 failed: its answer was cut off")
    assert busy(orchestrator) == 0


async def test_a_client_that_leaves_ends_its_request(
    orchestrator: LoopbackOrchestrator, caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    asked = asyncio.Event()
    left = asyncio.Event()

    async def runner(*_: object) -> None:
        asked.set()
        await left.wait()

    async with running(runner) as url:
        leaving = asyncio.create_task(caller.get(register(orchestrator, url)))
        await asked.wait()
        leaving.cancel()
        await said(caplog, "request 0 failed: its client has left")
        assert busy(orchestrator) == 0
        left.set()


async def test_what_goes_wrong_here_is_told(
    orchestrator: LoopbackOrchestrator,
    caller: Caller,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO)

    def broken(*_: Any) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(live_runner_routes, "_joined", broken)
    status, _ = await caller.get(register(orchestrator, "http://h:1"))
    assert (status, busy(orchestrator)) == (500, 0)
    assert "request 0 failed: RuntimeError('a fault of ours')" in caplog.text
    assert "Traceback" in caplog.text
