"""An HTTP server that stands in for ai-runner, well-behaved or not, as the test says."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import BodyPartReader, web
from pydantic import SecretStr

from cluster.ai_models import AIModel
from cluster.ai_models_types import ModelKey
from deployments.png import SIGNATURE

TOKEN = "a-bearer-token"
LLM = ModelKey("llm", "org/chat")
IMAGES = ModelKey("text-to-image", "org/a")
PNG = SIGNATURE + b" and so on"

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One request as it came."""

    path: str
    headers: Mapping[str, str]
    fields: dict[str, str]
    """Of a form; of a file, its bytes as text."""
    files: dict[str, tuple[str, str]]
    """Of a form: file names and content types."""
    document: Any = None
    """Of JSON."""


@dataclass(kw_only=True)
class Runner:
    """What it answers and what it was asked."""

    url: str = ""
    health: Any = field(default_factory=lambda: {"status": "OK"})
    """A document, or the number of an error."""
    version: str = "0.14.1"
    facts: Any = None
    """What it tells of itself in place of the truth."""
    answer: Any = field(default_factory=lambda: images(PNG))
    """A document, or a handler."""
    status: int = 200
    seen: list[Seen] = field(default_factory=list)
    checks: int = 0
    """Of its health."""
    silent: bool = False
    """Whether they are not answered."""
    cancelled: int = 0
    """Jobs whose client went away."""

    def model(self, key: ModelKey = IMAGES, *, capacity: int = 2, token: str = "") -> AIModel:
        """An entry of an aiModels.json for it."""
        return entry(key, self.url, capacity=capacity, token=token)

    async def _health(self, _: web.Request) -> web.Response:
        self.checks += 1
        while self.silent:
            await asyncio.sleep(0.01)
        if isinstance(self.health, int):
            return web.Response(status=self.health)
        return web.json_response(self.health)

    async def _version(self, _: web.Request) -> web.Response:
        told = {**IMAGES._asdict(), "version": self.version}
        return web.json_response(told if self.facts is None else self.facts)

    async def _hardware(self, _: web.Request) -> web.Response:
        gpu = {"id": "GPU-1", "name": "NVIDIA L40S", "major": 8, "minor": 9}
        memory = {"memory_free": 40_000_000_000, "memory_total": 48_000_000_000}
        told = {**IMAGES._asdict(), "gpu_info": {"0": {**gpu, **memory}}}
        return web.json_response(told if self.facts is None else self.facts)

    async def _job(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(await _seen(request))
        if not callable(self.answer):
            return web.json_response(self.answer, status=self.status)
        try:
            handler: Answer = self.answer
            return await handler(request)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


@asynccontextmanager
async def runner(path: str = "") -> AsyncIterator[Runner]:
    """Runs one, below a path if need be."""
    stand_in = Runner()
    application = web.Application(client_max_size=2**30)
    application.add_routes(
        [
            web.get(f"{path}/health", stand_in._health),
            web.get(f"{path}/version", stand_in._version),
            web.get(f"{path}/hardware/info", stand_in._hardware),
            web.post(path + "/{pipeline}", stand_in._job),
        ]
    )
    serving = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await serving.setup()
    site = web.TCPSite(serving, "127.0.0.1", 0)
    await site.start()
    stand_in.url = f"http://127.0.0.1:{serving.addresses[0][1]}{path}"
    try:
        yield stand_in
    finally:
        await serving.cleanup()


@asynccontextmanager
async def raw_server(answer: bytes, *, again: bytes = b"") -> AsyncIterator[str]:
    """Says some bytes to every connection, and others for ever or nothing more."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            while again:
                writer.write(again)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def entry(key: ModelKey, url: str, *, capacity: int = 2, token: str = "") -> AIModel:
    """An entry with a url."""
    return AIModel(
        **key._asdict(),
        warm=True,
        url=url,
        capacity=capacity,
        token=SecretStr(token) if token else None,
    )


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def images(*files: bytes, seed: int = 7) -> dict[str, Any]:
    """ai-runner's ImageResponse."""
    urls = enumerate(map(data_url, files), start=seed)
    return {"images": [{"url": url, "seed": number, "nsfw": False} for number, url in urls]}


def chunk(text: str = "", finish_reason: str = "", **other: Any) -> dict[str, Any]:
    """ai-runner's LLMResponse in a stream."""
    choice = {"index": 0, "delta": {"role": "assistant", "content": text}}
    return {
        "id": "chatcmpl-1",
        "model": "org/chat",
        "created": 1_700_000_000,
        "choices": [{**choice, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        **other,
    }


def events(*lines: Any, then: Callable[[], Awaitable[None]] | None = None) -> Answer:
    """Answers with an event stream; bytes are lines as they are."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for line in lines:
            raw = line if isinstance(line, bytes) else b"data: " + json.dumps(line).encode()
            await response.write(raw + b"\n\n")
        if then:
            await then()
        return response

    return answer


async def _seen(request: web.Request) -> Seen:
    fields, files, document = {}, {}, None
    if request.content_type == "application/json":
        document = await request.json()
    else:
        async for part in await request.multipart():
            assert isinstance(part, BodyPartReader)
            assert part.name
            fields[part.name] = (await part.read()).decode()
            if part.filename:
                files[part.name] = (part.filename, part.headers["Content-Type"])
            else:
                assert set(part.headers) == {"Content-Disposition"}
    return Seen(
        path=request.path,
        headers=dict(request.headers),
        fields=fields,
        files=files,
        document=document,
    )
