"""Start, stop and restart; the certificate; the process of its own."""

import asyncio
import signal
import socket
import ssl
import sys

import aiohttp
import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from cluster.commands.orchestrator import run
from cluster.errors import ConfigError
from cluster.loopback import LoopbackOrchestrator
from cluster.loopback.certificate import make_certificate
from cluster.loopback.jobs import STOPPING
from cluster.loopback.registration import PATH
from cluster.protocol import lp_rpc_pb2 as pb
from tests.cluster.loopback.wire import (
    PNG,
    SECRET,
    Caller,
    calling,
    capabilities,
    client_tls,
    registered,
    registering,
    result_body,
)


async def stand_still(
    orchestrator: LoopbackOrchestrator,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Announces an answer and sends none of it."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", orchestrator.port, ssl=client_tls(orchestrator)
    )
    writer.write(
        b"POST /aiResults HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\nexpect: 100-continue\r\n\r\n"
    )
    # The orchestrator asks for the body.
    assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
    return reader, writer


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "orchestrator.example"])
def test_the_certificate_is_like_the_real_ones(host: str) -> None:
    made = make_certificate(host)
    certificate = x509.load_pem_x509_certificate(made.pem.encode())
    assert list(certificate.subject) == []
    assert list(certificate.issuer) == []
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)
    extensions = certificate.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName(host)]
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    certificate.verify_directly_issued_by(certificate)
    assert make_certificate(host).fingerprint != made.fingerprint


async def test_a_client_sees_that_certificate(orchestrator: LoopbackOrchestrator) -> None:
    pem = await asyncio.to_thread(
        ssl.get_server_certificate, ("127.0.0.1", orchestrator.port), timeout=10
    )
    assert pem == orchestrator.pem
    assert len(orchestrator.fingerprint) == 64


async def test_a_restart_forgets_everything() -> None:
    fingerprints = []
    port = 0
    for _ in range(2):
        async with (
            LoopbackOrchestrator(secret=SECRET, port=port) as orchestrator,
            calling(orchestrator) as caller,
            registered(orchestrator) as worker,
        ):
            fingerprints.append(orchestrator.fingerprint)
            port = orchestrator.port
            request = caller.start()
            job = await worker.next_job()
            assert job.taskId == 0
            await worker.post(0, result_body([("00000000.png", PNG)]))
            assert (await request).status == 200
    assert fingerprints[0] != fingerprints[1]


async def test_stopping_ends_streams_and_requests() -> None:
    orchestrator = LoopbackOrchestrator(secret=SECRET)
    await orchestrator.__aenter__()
    async with (
        calling(orchestrator) as caller,
        registered(orchestrator) as worker,
        registered(orchestrator) as idle,
    ):
        request = caller.start()
        await worker.next_job()
        await orchestrator.__aexit__(None, None, None)
        for stream in (worker, idle):
            assert (await stream.ended())[0] is grpc.StatusCode.UNAVAILABLE
        reply = await request
        assert (reply.status, reply.error) == (503, STOPPING)
        async with registering(orchestrator) as late:
            assert (await late.ended())[0] is grpc.StatusCode.UNAVAILABLE


async def test_what_arrives_while_it_stops_is_turned_away(
    orchestrator: LoopbackOrchestrator, caller: Caller
) -> None:
    request = pb.RegisterAIWorkerRequest(secret=SECRET, capabilities=capabilities())
    async with registered(orchestrator) as worker:
        waiting = caller.start()
        await worker.next_job()
        # A request that stands still keeps the orchestrator for a while.
        reader, slow = await stand_still(orchestrator)
        stopping = asyncio.create_task(orchestrator.__aexit__(None, None, None))
        assert (await waiting).status == 503
        # On the connections that are open already.
        assert await worker.call_again(PATH, request.SerializeToString()) == (
            grpc.StatusCode.UNAVAILABLE,
            STOPPING,
        )
        assert await caller.get("/status") == (503, f"{STOPPING}\n".encode())
        slow.transport.abort()
        await stopping
        assert reader.at_eof()


async def test_stopping_does_not_wait_for_clients_that_stand_still(
    orchestrator: LoopbackOrchestrator,
) -> None:
    _, silent = await asyncio.open_connection(
        "127.0.0.1", orchestrator.port, ssl=client_tls(orchestrator)
    )
    reader, slow = await stand_still(orchestrator)
    async with asyncio.timeout(20):
        await orchestrator.__aexit__(None, None, None)
        await reader.read()
    for writer in (silent, slow):
        writer.transport.abort()


async def test_other_routes_are_refused(caller: Caller) -> None:
    assert await caller.get("/nothing") == (404, b"no such route\n")
    assert await caller.get("/aiResults") == (405, b"/aiResults takes POST only\n")
    assert await caller.get("/stream/") == (404, b"no such file, or not any more\n")
    # gRPC, but over HTTP/1.1.
    headers = {"Content-Type": "application/grpc"}
    async with caller.http.post(f"{caller.url}/net.AIWorker/Other", headers=headers) as reply:
        assert reply.status == 505


async def test_plaintext_is_not_answered(orchestrator: LoopbackOrchestrator) -> None:
    async with aiohttp.ClientSession() as http:
        with pytest.raises(aiohttp.ClientError):
            await http.get(f"http://127.0.0.1:{orchestrator.port}/status")


async def test_a_port_that_is_taken_is_named(orchestrator: LoopbackOrchestrator) -> None:
    other = LoopbackOrchestrator(secret=SECRET, port=orchestrator.port)
    with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{orchestrator.port}"):
        await other.__aenter__()


@pytest.mark.parametrize("listen", ["", "8935", ":8935", "host:", "host:x", "host:65536"])
def test_a_bad_address_is_named(listen: str) -> None:
    with pytest.raises(ConfigError, match="is not HOST:PORT"):
        run(listen=listen, secret=SECRET)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
async def test_the_process_says_when_it_listens_and_stops_when_told(
    signal_number: signal.Signals,
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-W", "error", "-m", "cluster.cli", "orchestrator"),
        *("--listen", "127.0.0.1:0", "--orch-secret", SECRET),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    words = line.split()
    assert words[:4] == ["orchestrator", "listening", "on", words[3]]
    port = int(words[3].rpartition(":")[2])
    pem = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port), timeout=10)
    certificate = x509.load_pem_x509_certificate(pem.encode())
    assert certificate.fingerprint(certificate.signature_hash_algorithm).hex() in line  # type: ignore[arg-type]  # SHA-256
    process.send_signal(signal_number)
    _, stderr = await process.communicate()
    assert (process.returncode, stderr.decode()) == (0, "")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10)
