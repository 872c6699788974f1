"""Answers on the wire: exact to the byte, tried again while it is safe, never to the wrong one."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from pydantic import SecretStr

from cluster.bridge.address import Address
from cluster.bridge.job import Job
from cluster.bridge.peer import identify, peer_with
from cluster.bridge.results import Delivery, failure, success
from cluster.errors import DeadlinePassed, InsufficientCapacity, JobFailed, JobRejected
from cluster.loopback.certificate import make_certificate
from deployments.schemas.segment_anything_2 import SegmentAnything2Result
from tests.cluster.bridge.conftest import PNG, certificate_from_tomorrow, image_result

SECRET = "s3cret"


def test_a_result_is_written_as_the_orchestrator_reads_it() -> None:
    answer = success(image_result(1, 2))
    kind, boundary = answer.content_type.split("; boundary=")
    assert kind == "multipart/mixed"
    body = b"".join(answer.pieces)
    assert len(body) == answer.length_bytes
    first, second, document, end = body.split(f"--{boundary}".encode())[1:]
    assert end == b"--\r\n"
    names = []
    for part in (first, second):
        head, _, data = part.partition(b"\r\n\r\n")
        assert data == PNG + b"\r\n"
        disposition, length, content_type = head.strip().split(b"\r\n")
        prefix = b"Content-Disposition: attachment; filename="
        assert disposition.startswith(prefix)
        names.append(disposition.removeprefix(prefix).decode())
        assert length == f"Content-Length: {len(PNG)}".encode()
        assert content_type == b"Content-Type: image/png"
    head, _, data = document.partition(b"\r\n\r\n")
    assert b"Content-Type: application/json" in head.split(b"\r\n")
    assert (
        data
        == (
            f'{{"images":[{{"url":"{names[0]}","seed":1,"nsfw":false}},'
            f'{{"url":"{names[1]}","seed":2,"nsfw":false}}]}}\r\n'
        ).encode()
    )
    assert names[0] != names[1]
    assert all(len(name) == 12 and name.endswith(".png") for name in names)


def test_what_the_replica_wrote_out_is_not_written_again() -> None:
    masks = b"[[[" + b"-3.4521212577819824, " * 1_000_000 + b"0.0]]]"
    result = SegmentAnything2Result(masks=masks, scores=b"[1.0]", logits=b"[[[2.0]]]")
    answer = success(result)
    # The very object: 20 MB were neither copied nor looked at in the event loop.
    assert any(piece is masks for piece in answer.pieces)
    head, _, rest = b"".join(answer.pieces).partition(b"\r\n\r\n")
    document, _, _ = rest.rpartition(b"\r\n--")
    assert f"Content-Length: {len(document)}".encode() in head.split(b"\r\n")
    assert json.loads(document) == result.document([])


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (JobRejected("bad\nwidth"), "text-to-image container returned 400: bad width"),
        (InsufficientCapacity("no \x1b[31m\x07\u202e"), "insufficient capacity: no [31m"),
        (InsufficientCapacity("busy"), "insufficient capacity: busy"),
        (JobFailed("oh"), "text-to-image container returned 500: oh"),
        (DeadlinePassed("late"), "text-to-image container returned 500: late"),
    ],
)
def test_errors_in_the_networks_words(error: JobFailed, text: str) -> None:
    answer = failure(error, "text-to-image")
    assert answer.content_type == "livepeer/ai-worker-error"
    assert b"".join(answer.pieces).decode() == text


class Orchestrator:
    """A /aiResults that answers as told, on a TLS port that can be restarted."""

    def __init__(self) -> None:
        self.replies: list[int | None] = []
        """Status of each reply; None closes the connection without one."""
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.port = 0

    async def _take(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.read())
        self.headers.append(dict(request.headers))
        status = self.replies.pop(0) if self.replies else 200
        if status is None:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return web.Response(status=status, text="so be it")

    @asynccontextmanager
    async def running(self, tls: ssl.SSLContext) -> AsyncIterator[None]:
        app = web.Application(client_max_size=2**30)
        app.router.add_post("/aiResults", self._take)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, ssl_context=tls)
        await site.start()
        self.port = runner.addresses[0][1]
        try:
            yield
        finally:
            await runner.cleanup()


async def job_from(orchestrator: Orchestrator) -> Job:
    peer = await identify(Address("127.0.0.1", orchestrator.port))
    now = asyncio.get_running_loop().time()
    return Job(task_id=12, pipeline="text-to-image", data=b"", peer=peer, received_at=now)


@pytest.fixture
async def delivery(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Delivery]:
    monkeypatch.setattr("cluster.bridge.results.RETRY_FIRST_S", 0.01)
    async with Delivery(secret=SecretStr(SECRET)) as opened:
        yield opened


async def test_an_answer_has_the_headers_of_a_worker(delivery: Delivery) -> None:
    orchestrator = Orchestrator()
    async with orchestrator.running(make_certificate("127.0.0.1").tls):
        assert await delivery.deliver(await job_from(orchestrator), success(image_result(1)))
    (headers,) = orchestrator.headers
    assert headers["Authorization"] == "Livepeer-AI-Worker-1.0"
    assert headers["Credentials"] == SECRET
    assert headers["TaskId"] == "12"
    assert headers["Pipeline"] == "text-to-image"
    assert headers["Content-Length"] == str(len(orchestrator.bodies[0]))


async def test_a_clock_that_was_set_back_since_costs_no_answer(delivery: Delivery) -> None:
    orchestrator = Orchestrator()
    certificate = certificate_from_tomorrow()
    async with orchestrator.running(certificate.tls):
        peer = peer_with(Address("127.0.0.1", orchestrator.port), certificate.pem)
        now = asyncio.get_running_loop().time()
        job = Job(task_id=1, pipeline="llm", data=b"", peer=peer, received_at=now)
        assert await delivery.deliver(job, success(image_result(1)))


async def test_a_large_answer_arrives_whole(delivery: Delivery) -> None:
    data = PNG + bytes(range(256)) * 200_000
    orchestrator = Orchestrator()
    async with orchestrator.running(make_certificate("127.0.0.1").tls):
        answer = success(image_result(1, data=data))
        assert await delivery.deliver(await job_from(orchestrator), answer)
    assert data in orchestrator.bodies[0]
    assert len(orchestrator.bodies[0]) == answer.length_bytes


@pytest.mark.parametrize("trouble", [None, 500, 503])
async def test_trouble_on_the_way_is_tried_again(delivery: Delivery, trouble: int | None) -> None:
    orchestrator = Orchestrator()
    orchestrator.replies = [trouble, trouble, 200]
    async with orchestrator.running(make_certificate("127.0.0.1").tls):
        assert await delivery.deliver(await job_from(orchestrator), success(image_result(1)))
    assert len(orchestrator.bodies) == 3
    assert len(set(orchestrator.bodies)) == 1


@pytest.mark.parametrize("refusal", [400, 401, 415])
async def test_a_refusal_is_final_and_said(
    delivery: Delivery, refusal: int, caplog: pytest.LogCaptureFixture
) -> None:
    orchestrator = Orchestrator()
    orchestrator.replies = [refusal]
    async with orchestrator.running(make_certificate("127.0.0.1").tls):
        assert not await delivery.deliver(await job_from(orchestrator), success(image_result(1)))
    assert len(orchestrator.bodies) == 1
    assert f"answered {refusal}: so be it" in caplog.text
    assert SECRET not in caplog.text


async def test_a_restarted_orchestrator_never_gets_an_old_answer(
    delivery: Delivery, caplog: pytest.LogCaptureFixture
) -> None:
    orchestrator = Orchestrator()
    async with orchestrator.running(make_certificate("127.0.0.1").tls):
        job = await job_from(orchestrator)
    async with orchestrator.running(make_certificate("127.0.0.1").tls):
        assert not await delivery.deliver(job, success(image_result(1)))
    assert orchestrator.bodies == []
    assert "it was restarted" in caplog.text


async def test_an_upload_that_stalls_is_given_up(
    delivery: Delivery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cluster.bridge.results.STALL_TIMEOUT_S", 0.1)
    monkeypatch.setattr("cluster.bridge.results.JOB_LIMIT_S", 0.5)
    gone = asyncio.Event()

    async def never_reads(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        writer.transport.abort()

    tls = make_certificate("127.0.0.1").tls
    server = await asyncio.start_server(never_reads, "127.0.0.1", 0, ssl=tls, limit=1)
    async with server:
        peer = await identify(Address("127.0.0.1", server.sockets[0].getsockname()[1]))
        now = asyncio.get_running_loop().time()
        job = Job(task_id=1, pipeline="text-to-image", data=b"", peer=peer, received_at=now)
        large = success(image_result(1, data=PNG + bytes(64 * 1024 * 1024)))
        assert not await delivery.deliver(job, large)
        gone.set()
    assert "TimeoutError" in caplog.text


async def test_an_orchestrator_that_is_away_for_a_moment_gets_its_answer(
    delivery: Delivery, caplog: pytest.LogCaptureFixture
) -> None:
    orchestrator = Orchestrator()
    tls = make_certificate("127.0.0.1").tls
    async with orchestrator.running(tls):
        job = await job_from(orchestrator)
    delivering = asyncio.create_task(delivery.deliver(job, success(image_result(1))))
    async with asyncio.timeout(30):
        while "not delivered, again" not in caplog.text:
            await asyncio.sleep(0.01)
    async with orchestrator.running(tls):
        assert await delivering


async def test_an_answer_is_given_up_when_its_job_is_over(
    delivery: Delivery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cluster.bridge.results.JOB_LIMIT_S", 0.1)
    orchestrator = Orchestrator()
    async with orchestrator.running(make_certificate("127.0.0.1").tls):
        job = await job_from(orchestrator)
    assert not await delivery.deliver(job, success(image_result(1)))
    assert "its time is over" in caplog.text
