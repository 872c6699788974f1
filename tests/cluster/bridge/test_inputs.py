"""Input files: bounded, from where they may come, and their failures named."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from aiohttp import web

from cluster.ai_models import ModelKey
from cluster.bridge.address import Address
from cluster.bridge.inputs import Inputs
from cluster.bridge.job import Job, Work
from cluster.bridge.peer import Peer, identify
from cluster.errors import JobFailed, JobRejected
from cluster.loopback.certificate import make_certificate
from deployments.registry import PIPELINES

DATA = bytes(range(256)) * 400
MAX_BYTES = 1_000_000


@asynccontextmanager
async def store(tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A store with a file, one that never ends, one that says it is large, and a redirect."""

    async def file(_: web.Request) -> web.Response:
        return web.Response(body=DATA)

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(DATA)

    async def large(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(MAX_BYTES + 1)})
        await response.prepare(request)
        # Not one byte of it: who waits for any waits for ever.
        await asyncio.Event().wait()
        return response

    async def elsewhere(_: web.Request) -> web.Response:
        raise web.HTTPFound("/file")

    app = web.Application()
    app.router.add_get("/file", file)
    app.router.add_get("/endless", endless)
    app.router.add_get("/large", large)
    app.router.add_get("/elsewhere", elsewhere)
    # Those that wait for ever are not waited for.
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    port = runner.addresses[0][1]
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


def job(peer: Peer) -> Job:
    now = asyncio.get_running_loop().time()
    return Job(task_id=1, pipeline="upscale", data=b"", peer=peer, received_at=now)


def work(url: str) -> Work:
    pipeline = replace(PIPELINES["upscale"], max_file_bytes=MAX_BYTES)
    key = ModelKey("upscale", "org/a")
    return Work(key=key, pipeline=pipeline, parameters={}, input_url=url)


ELSEWHERE = Peer(address=Address("orchestrator.example", 8935))


async def test_a_file_from_any_store() -> None:
    async with store() as url, Inputs() as inputs:
        assert await inputs.fetch(job(ELSEWHERE), work(f"{url}/file")) == DATA


async def test_the_orchestrators_own_certificate_is_trusted_for_its_own_files() -> None:
    async with store(make_certificate("127.0.0.1").tls) as url, Inputs() as inputs:
        peer = await identify(Address.parse(url))
        assert await inputs.fetch(job(peer), work(f"{url}/file")) == DATA


@pytest.mark.parametrize("name", ["localhost", "LocalHost"])
async def test_and_at_its_service_uri_wherever_it_was_dialled(name: str) -> None:
    # An operator dials the address of his own network, and files are at the public name.
    async with store(make_certificate(name).tls) as url, Inputs() as inputs:
        dialled = Address.parse(url)
        peer = await identify(dialled)
        where = f"https://localhost:{dialled.port}/file"
        assert await inputs.fetch(job(peer), work(where)) == DATA


async def test_a_proxy_before_it_may_have_an_ordinary_certificate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ordinary = make_certificate("localhost")
    monkeypatch.setattr(
        "aiohttp.connector._SSL_CONTEXT_VERIFIED", ssl.create_default_context(cadata=ordinary.pem)
    )
    async with (
        store(make_certificate("localhost").tls) as url,
        store(ordinary.tls) as proxy,
        Inputs() as inputs,
    ):
        peer = await identify(Address.parse(url))
        where = f"https://localhost:{Address.parse(proxy).port}/file"
        assert await inputs.fetch(job(peer), work(where)) == DATA


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_nobody_elses_self_signed_certificate_is(host: str) -> None:
    async with (
        store(make_certificate("localhost").tls) as url,
        store(make_certificate("localhost").tls) as other,
        Inputs() as inputs,
    ):
        peer = await identify(Address.parse(url))
        where = f"https://{host}:{Address.parse(other).port}/file"
        with pytest.raises(JobFailed, match="ClientConnectorCertificateError"):
            await inputs.fetch(job(peer), work(where))


async def test_its_certificate_proves_no_other_name() -> None:
    async with store(make_certificate("orchestrator.example").tls) as url, Inputs() as inputs:
        peer = await identify(Address.parse(url))
        where = f"https://localhost:{Address.parse(url).port}/file"
        with pytest.raises(JobFailed, match="ClientConnectorCertificateError"):
            await inputs.fetch(job(peer), work(where))


@pytest.mark.parametrize("path", ["endless", "large"])
async def test_of_a_file_that_is_too_large_no_more_is_read(path: str) -> None:
    async with store() as url, Inputs() as inputs:
        with pytest.raises(JobRejected, match=r"^image: .* larger than the 1000000 bytes"):
            await inputs.fetch(job(ELSEWHERE), work(f"{url}/{path}"))


@pytest.mark.parametrize(("path", "status"), [("nothing", 404), ("elsewhere", 302)])
async def test_what_is_not_a_file_is_named(path: str, status: int) -> None:
    async with store() as url, Inputs() as inputs:
        with pytest.raises(JobFailed, match=f"answered {status}"):
            await inputs.fetch(job(ELSEWHERE), work(f"{url}/{path}"))


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/file", "", "file", "http://["])
async def test_other_schemes_are_refused(url: str) -> None:
    async with Inputs() as inputs:
        with pytest.raises(JobRejected, match="want an http or https url"):
            await inputs.fetch(job(ELSEWHERE), work(url))


async def test_a_store_that_is_down() -> None:
    async with store() as url:
        pass
    async with Inputs() as inputs:
        with pytest.raises(JobFailed, match="could not be fetched: ClientConnectorError"):
            await inputs.fetch(job(ELSEWHERE), work(f"{url}/file"))
