"""A worker and a caller, written against the wire and sharing no code with the bridge."""

import asyncio
import io
import json
import os
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before grpc is imported; it writes to stderr

import grpc

from cluster.loopback import LoopbackOrchestrator
from cluster.protocol import lp_rpc_pb2 as pb
from cluster.protocol.lp_rpc_pb2_grpc import AIWorkerStub

SECRET = "s3cret & more"
TEXT_TO_IMAGE = 27
MODEL = "acme/painter"
PNG = b"\x89PNG\r\n\x1a\n and so on"
MP4 = b"\0\0\0\x20ftypisom and so on"
WAV = b"RIFF\x24\0\0\0WAVEfmt and so on"
BOUNDARY = "a-boundary"

File = tuple[str, bytes]


def capabilities(
    models: Mapping[str, int] | None = None,
    *,
    version: str = "0.9.1",
    capability: int = TEXT_TO_IMAGE,
) -> pb.Capabilities:
    """Advertises models by id and capacity."""
    message = pb.Capabilities(version=version)
    for model_id, capacity in (models if models is not None else {MODEL: 1}).items():
        model = message.constraints.PerCapability[capability].models[model_id]
        model.capacity = capacity
        model.warm = True
    return message


def client_tls(orchestrator: LoopbackOrchestrator) -> ssl.SSLContext:
    """Trusts the orchestrator's certificate and nothing else."""
    context = ssl.create_default_context(cadata=orchestrator.pem)
    context.check_hostname = False  # OpenSSL wants an IP name in the certificate for an IP target
    return context


def part(data: bytes, **headers: str) -> bytes:
    """One part of a multipart body; `content_type=` becomes `Content-Type:`."""
    lines = [f"{name.replace('_', '-').title()}: {value}" for name, value in headers.items()]
    return f"--{BOUNDARY}\r\n".encode() + "\r\n".join([*lines, "", ""]).encode() + data + b"\r\n"


def file_part(name: str, data: bytes = PNG, content_type: str = "image/png") -> bytes:
    """A file as workers send it."""
    return part(data, content_disposition=f"attachment; filename={name}", content_type=content_type)


def json_part(document: object, content_type: str = "application/json") -> bytes:
    """The document as workers send it; bytes go as they are."""
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return part(data, content_type=content_type)


def images(*names: str, first_seed: int = 7) -> dict[str, Any]:
    """The document of images with these files."""
    return {
        "images": [
            {"url": name, "seed": first_seed + index, "nsfw": False}
            for index, name in enumerate(names)
        ]
    }


def closed(*parts: bytes) -> bytes:
    """Parts and the closing boundary."""
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def document_body(document: object, *files: bytes) -> bytes:
    """A result: a document after the parts of its files."""
    return closed(*files, json_part(document))


def result_body(files: Sequence[File]) -> bytes:
    """A well-formed result of text-to-image."""
    parts = [file_part(name, data) for name, data in files]
    return document_body(images(*(name for name, _ in files)), *parts)


@dataclass(kw_only=True)
class EventPost:
    """An event stream on its way to /aiResults."""

    reply: asyncio.Task[tuple[int, str]]
    pieces: asyncio.Queue[bytes | Exception | None]

    def send(self, *pieces: bytes) -> None:
        """Sends bytes, as they are."""
        for piece in pieces:
            self.pieces.put_nowait(piece)

    def break_off(self) -> None:
        """Loses the connection."""
        self.pieces.put_nowait(ConnectionAbortedError())

    async def finish(self) -> tuple[int, str]:
        """Ends the stream; the reply."""
        self.pieces.put_nowait(None)
        return await self.reply


@dataclass(kw_only=True)
class WireWorker:
    """One registered worker: a gRPC call and an HTTP session."""

    call: grpc.aio.UnaryStreamCall[pb.RegisterAIWorkerRequest, pb.NotifyAIJob]
    channel: grpc.aio.Channel
    http: aiohttp.ClientSession
    url: str
    peer: str = ""

    async def call_again(self, path: str, message: bytes) -> tuple[grpc.StatusCode, str]:
        """Makes another call on the same connection; how it ended."""
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self.channel.unary_stream(path)
        call = method(message)
        return await call.code(), await call.details() or ""

    async def next_job(self) -> pb.NotifyAIJob:
        """Waits for the next job."""
        job = await self.call.read()
        assert isinstance(job, pb.NotifyAIJob), "the stream has ended"
        return job

    async def ended(self) -> tuple[grpc.StatusCode, str | None]:
        """Waits for the end of the stream; how it ended."""
        return await self.call.code(), await self.call.details()

    async def post(
        self,
        task_id: int | str,
        body: bytes,
        *,
        content_type: str = f"multipart/mixed; boundary={BOUNDARY}",
        pipeline: str = "text-to-image",
        authorization: str = "Livepeer-AI-Worker-1.0",
        credentials: str = SECRET,
        second_task_id: str = "",
    ) -> tuple[int, str]:
        """Posts an answer; the reply."""
        headers = [
            ("Authorization", authorization),
            ("Credentials", credentials),
            ("TaskId", str(task_id)),
            ("Pipeline", pipeline),
            ("Content-Type", content_type),
            *([("TaskId", second_task_id)] if second_task_id else []),
        ]
        # BytesIO, because aiohttp warns of large bytes.
        data = io.BytesIO(body)
        async with self.http.post(f"{self.url}/aiResults", data=data, headers=headers) as reply:
            return reply.status, await reply.text()

    def post_events(self, task_id: int, **headers: str) -> EventPost:
        """Begins to post an event stream."""
        pieces: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()

        async def body() -> AsyncIterator[bytes]:
            while (piece := await pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece

        async def post() -> tuple[int, str]:
            given = {
                "Authorization": "Livepeer-AI-Worker-1.0",
                "Credentials": SECRET,
                "TaskId": str(task_id),
                "Pipeline": "llm",
                "Content-Type": "text/event-stream",
                **headers,
            }
            url = f"{self.url}/aiResults"
            async with self.http.post(url, data=body(), headers=given) as reply:
                return reply.status, await reply.text()

        return EventPost(reply=asyncio.create_task(post()), pieces=pieces)

    async def post_error(self, task_id: int, text: str) -> tuple[int, str]:
        """Posts an error; the reply."""
        return await self.post(task_id, text.encode(), content_type="livepeer/ai-worker-error")


@asynccontextmanager
async def registering(
    orchestrator: LoopbackOrchestrator,
    advertised: pb.Capabilities | None = None,
    *,
    secret: str = SECRET,
    hardware: Sequence[pb.HardwareInformation] = (),
) -> AsyncIterator[WireWorker]:
    """Calls RegisterAIWorker on a connection of its own; nobody knows yet how it ends."""
    options: list[tuple[str, Any]] = [
        ("grpc.ssl_target_name_override", "127.0.0.1"),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.enable_http_proxy", 0),
    ]
    credentials = grpc.ssl_channel_credentials(root_certificates=orchestrator.pem.encode())
    connector = aiohttp.TCPConnector(ssl=client_tls(orchestrator))
    async with (
        grpc.aio.secure_channel(
            f"127.0.0.1:{orchestrator.port}", credentials, options=options
        ) as channel,
        aiohttp.ClientSession(connector=connector) as http,
    ):
        request = pb.RegisterAIWorkerRequest(
            secret=secret, capabilities=advertised, hardware=hardware
        )
        call = AIWorkerStub(channel).RegisterAIWorker(request)
        try:
            yield WireWorker(call=call, channel=channel, http=http, url=orchestrator.url)
        finally:
            call.cancel()


@asynccontextmanager
async def registered(
    orchestrator: LoopbackOrchestrator,
    advertised: pb.Capabilities | None = None,
    *,
    hardware: Sequence[pb.HardwareInformation] = (),
) -> AsyncIterator[WireWorker]:
    """Registers and waits until the orchestrator counts the worker."""
    before = {worker.peer for worker in orchestrator.workers}
    async with registering(
        orchestrator,
        advertised if advertised is not None else capabilities(),
        hardware=hardware,
    ) as worker:
        await orchestrator.wait_for_workers(
            lambda workers: bool({worker.peer for worker in workers} - before)
        )
        worker.peer = orchestrator.workers[-1].peer
        yield worker


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a caller gets."""

    status: int
    document: Any
    task_id: str | None

    @property
    def error(self) -> str:
        """The message of an error reply."""
        return str(self.document["error"]["message"])


@dataclass(frozen=True, kw_only=True)
class Caller:
    """A gateway's client."""

    http: aiohttp.ClientSession
    url: str

    async def generate(self, body: object = None, *, pipeline: str = "text-to-image") -> Reply:
        """Posts a request; bytes go as they are."""
        given = body if body is not None else {"prompt": "a cat", "model_id": MODEL}
        data = given if isinstance(given, bytes) else json.dumps(given).encode()
        return await self.post_form(pipeline, data)

    async def upload(
        self,
        pipeline: str,
        file: bytes | None,
        fields: Sequence[tuple[str, str]] = (),
        *,
        field: str = "image",
    ) -> Reply:
        """Posts a form with a file and text fields."""
        form = aiohttp.FormData(default_to_multipart=True)
        for name, value in fields:
            form.add_field(name, value)
        if file is not None:
            form.add_field(field, io.BytesIO(file), filename='a "name".bin')
        return await self.post_form(pipeline, form)

    async def post_form(
        self, pipeline: str, form: aiohttp.FormData | bytes, content_type: str | None = None
    ) -> Reply:
        """Posts a form, or bytes that claim to be one."""
        headers = {} if content_type is None else {"Content-Type": content_type}
        async with self.http.post(f"{self.url}/{pipeline}", data=form, headers=headers) as reply:
            return Reply(
                status=reply.status,
                document=await reply.json(),
                task_id=reply.headers.get("Livepeer-Task-Id"),
            )

    @asynccontextmanager
    async def streaming(self, body: object) -> AsyncIterator[aiohttp.ClientResponse]:
        """Posts a request to llm and yields the response while it comes."""
        async with self.http.post(f"{self.url}/llm", json=body) as reply:
            yield reply

    async def generate_raw(self, body: bytes) -> tuple[int, str]:
        """Posts bytes; the reply as text."""
        async with self.http.post(f"{self.url}/text-to-image", data=body) as reply:
            return reply.status, await reply.text()

    def start(self, body: object = None) -> asyncio.Task[Reply]:
        """Posts a request in the background."""
        return asyncio.create_task(self.generate(body))

    async def get(self, url: str) -> tuple[int, bytes]:
        """Downloads a url, absolute or a path."""
        async with self.http.get(url if "://" in url else f"{self.url}{url}") as reply:
            return reply.status, await reply.read()

    async def status(self) -> dict[str, Any]:
        """The orchestrator's /status."""
        _, body = await self.get("/status")
        document: dict[str, Any] = json.loads(body)
        return document


@asynccontextmanager
async def calling(orchestrator: LoopbackOrchestrator) -> AsyncIterator[Caller]:
    """A caller of this orchestrator."""
    connector = aiohttp.TCPConnector(ssl=client_tls(orchestrator))
    async with aiohttp.ClientSession(connector=connector) as http:
        yield Caller(http=http, url=orchestrator.url)
