"""Orchestrators that are not as they should be: each is named, and tried again."""

import asyncio
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.bridge.address import Address
from cluster.bridge.job import Job
from cluster.bridge.peer import identify
from cluster.bridge.registration import BACKOFF_MAX_S, backoff_s
from cluster.bridge.stream import open_stream
from cluster.errors import (
    FingerprintMismatch,
    InvalidSecret,
    OrchestratorRefused,
    OrchestratorUnreachable,
)
from cluster.loopback import LoopbackOrchestrator
from cluster.loopback.certificate import make_certificate
from cluster.loopback.grpc_framing import UNAVAILABLE, Status
from cluster.protocol import lp_rpc_pb2 as pb
from tests.cluster.bridge.conftest import (
    SECRET,
    Ask,
    address,
    capacity,
    certificate_from_tomorrow,
    registered,
    running,
)

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


@asynccontextmanager
async def listening(handler: Handler, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server that is no orchestrator; yields its port."""
    server = await asyncio.start_server(handler, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def says_garbage(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"garbage " * 100)
    writer.close()


async def says_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await reader.read()
    finally:
        writer.close()


async def register(where: Address, *, secret: str = SECRET, pin: str | None = None) -> None:
    request = pb.RegisterAIWorkerRequest(
        secret=secret, capabilities=pb.Capabilities(version="0.9.1")
    )
    jobs: asyncio.Queue[Job] = asyncio.Queue()
    stream = await open_stream(request, address=where, pin=pin, last_peer=None, on_job=jobs.put)
    await stream.close()


async def free_port() -> int:
    async with listening(says_nothing) as port:
        return port


async def test_one_that_is_down() -> None:
    with pytest.raises(OrchestratorUnreachable, match="Connection refused"):
        await register(Address("127.0.0.1", await free_port()))


async def test_one_whose_name_does_not_resolve() -> None:
    with pytest.raises(OrchestratorUnreachable, match="no such host"):
        await register(Address("orchestrator.invalid", 8935))


async def test_one_that_speaks_plaintext() -> None:
    async with listening(says_garbage) as port:
        with pytest.raises(OrchestratorUnreachable, match=r"does not speak TLS .*http://127"):
            await register(Address("127.0.0.1", port))


async def test_one_that_speaks_garbage_over_tls() -> None:
    tls = make_certificate("127.0.0.1").tls
    async with listening(says_garbage, tls=tls) as port:
        with pytest.raises(OrchestratorUnreachable, match="UNAVAILABLE"):
            await register(Address("127.0.0.1", port))


async def test_one_whose_clock_is_another() -> None:
    async with listening(says_nothing, tls=certificate_from_tomorrow().tls) as port:
        with pytest.raises(OrchestratorUnreachable, match=r"valid from .* set the clock of one"):
            await register(Address("127.0.0.1", port))


async def test_no_place_for_a_socket_is_said_and_tried_again(
    orchestrator: LoopbackOrchestrator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("long" * 30)
    long.mkdir()
    for folder in (tmp_path / "nowhere", long):
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        with pytest.raises(OrchestratorUnreachable, match="TMPDIR"):
            await register(address(orchestrator))
    assert list(long.iterdir()) == []


async def test_plaintext_is_spoken_only_when_asked_for(
    orchestrator: LoopbackOrchestrator,
) -> None:
    where = Address("127.0.0.1", orchestrator.port, tls=False)
    with pytest.raises(OrchestratorUnreachable, match="UNAVAILABLE"):
        await register(where)


async def test_one_that_does_not_like_the_secret(orchestrator: LoopbackOrchestrator) -> None:
    with pytest.raises(InvalidSecret) as raised:
        await register(address(orchestrator), secret="wrong-secret")
    assert "wrong-secret" not in str(raised.value)


async def test_one_that_is_newer_than_we_say() -> None:
    async with LoopbackOrchestrator(secret=SECRET, version="1.2.0") as newer:
        with pytest.raises(OrchestratorRefused, match="raise --advertise-version"):
            await register(address(newer))


async def test_the_fingerprint_can_be_pinned(orchestrator: LoopbackOrchestrator) -> None:
    await register(address(orchestrator), pin=orchestrator.fingerprint)
    with pytest.raises(FingerprintMismatch, match=orchestrator.fingerprint):
        await register(address(orchestrator), pin="0" * 64)


async def test_who_is_there_is_told_apart_by_certificate(
    orchestrator: LoopbackOrchestrator,
) -> None:
    peer = await identify(address(orchestrator))
    assert peer == await identify(address(orchestrator))
    assert peer.fingerprint == orchestrator.fingerprint
    assert peer.name == "127.0.0.1"
    async with LoopbackOrchestrator(secret=SECRET) as other:
        assert (await identify(address(other))).fingerprint != peer.fingerprint


async def test_a_bridge_goes_on_trying(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cluster.bridge.registration.BACKOFF_FIRST_S", 0.01)
    port = await free_port()
    async with running(Address("127.0.0.1", port), capacity(a=1)) as bridge:
        async with asyncio.timeout(30):
            while caplog.text.count("Connection refused") < 3:
                await asyncio.sleep(0.01)
        assert not bridge.task.done()
        async with LoopbackOrchestrator(secret=SECRET, port=port) as late:
            await registered(late)


async def test_hostile_streams_do_not_end_the_bridge(
    orchestrator: LoopbackOrchestrator, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(address(orchestrator), capacity(a=1)) as bridge:
        await registered(orchestrator)
        orchestrator.workers[0].end_stream(Status(UNAVAILABLE, "a bad moment"))
        await registered(orchestrator, 0)
        await registered(orchestrator, 1)
        assert (await ask())[0] == 200
        assert not bridge.task.done()
    assert "UNAVAILABLE a bad moment; trying again" in caplog.text


def test_the_backoff_grows_to_its_cap() -> None:
    assert 0.25 <= backoff_s(0) <= 0.75
    assert BACKOFF_MAX_S * 0.5 <= backoff_s(50) <= BACKOFF_MAX_S * 1.5
    assert 0 < backoff_s(10_000) <= BACKOFF_MAX_S * 1.5
