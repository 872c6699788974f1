"""The orchestrator: one TLS port for gRPC and HTTP, and who handles what arrives there."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import partial
from types import TracebackType
from typing import Any, Self, cast

from cluster.errors import ConfigError
from cluster.loopback import registration
from cluster.loopback.ai_results import MAX_RESULT_BYTES, AIResults, is_event_stream
from cluster.loopback.asgi import (
    Head,
    Message,
    Receive,
    Request,
    Response,
    Send,
    StreamedResponse,
    body_chunks,
    read_head,
    read_request,
    respond,
)
from cluster.loopback.certificate import ServerCertificate, make_certificate
from cluster.loopback.faults import Fault, FaultLog
from cluster.loopback.gateway import MAX_REQUEST_BYTES, MAX_UPLOAD_BYTES, Gateway
from cluster.loopback.grpc_framing import (
    UNAVAILABLE,
    UNIMPLEMENTED,
    Status,
    end_stream,
    start_stream,
)
from cluster.loopback.jobs import STOPPING, Jobs, MediaAnswer
from cluster.loopback.live_runner_routes import LiveRunnerRoutes
from cluster.loopback.live_runners import LiveRunners
from cluster.loopback.misbehaviour import Misbehaviour
from cluster.loopback.pipelines import PIPELINES
from cluster.loopback.registration import Registration
from cluster.loopback.tls_server import TLSServer
from cluster.loopback.workers import Worker, Workers, summed

Handler = Callable[[Request], Awaitable[Response | StreamedResponse]]

HEARTBEATS_A_TTL = 4
"""After so many that did not come a live runner has expired."""

_FAREWELL_S = 2.0
"""How long requests have for their last words at shutdown before they are cut off."""


class LoopbackOrchestrator:
    """A development orchestrator; listens while it is entered as a context.

    Args:
        secret: What workers have to name (`-orchSecret`).
        host: Address to listen on, and the name in the certificate.
        port: 0 takes a free one.
        version: The lowest version that workers may advertise.
        job_timeout_s: After this an unanswered job costs its worker the stream.
        heartbeat_s: How often live runners are to call.

    Raises:
        ConfigError: no secret, or (when entered) nothing can listen there.
    """

    def __init__(
        self,
        *,
        secret: str,
        host: str = "127.0.0.1",
        port: int = 0,
        version: str = "0.8.0",
        job_timeout_s: float = 900.0,
        heartbeat_s: float = 5.0,
    ) -> None:
        if not secret:
            raise ConfigError("the orchestrator needs a secret: give --orch-secret")
        self._host = host
        self._requested_port = port
        self._version = version
        self._faults = FaultLog()
        self._workers = Workers()
        self._jobs = Jobs(workers=self._workers, faults=self._faults, timeout_s=job_timeout_s)
        self._server = TLSServer(self._app)
        self._misbehaviour = Misbehaviour(
            connection=self._server.connection, max_bytes=MAX_RESULT_BYTES
        )
        self._registration = Registration(
            secret=secret,
            version=version,
            workers=self._workers,
            faults=self._faults,
            connection=self._server.connection,
            messages=self._misbehaviour.messages,
        )
        self._ai_results = AIResults(secret=secret, jobs=self._jobs, faults=self._faults)
        self._live_runners = LiveRunners(
            secret=secret, interval_s=heartbeat_s, ttl_s=HEARTBEATS_A_TTL * heartbeat_s
        )
        self._requests: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._certificate: ServerCertificate
        self._gateway: Gateway
        self._live_routes: LiveRunnerRoutes
        self.port: int

    @property
    def url(self) -> str:
        """`https://HOST:PORT`."""
        return f"https://{_address(self._host, self.port)}"

    @property
    def pem(self) -> str:
        """The certificate."""
        return self._certificate.pem

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate's DER form, lower-case hex."""
        return self._certificate.fingerprint

    @property
    def faults(self) -> list[Fault]:
        """What workers did wrong; see `faults.FaultLog`."""
        return self._faults.faults

    @property
    def late(self) -> list[Fault]:
        """Answers to unknown or finished jobs, which were ignored."""
        return self._faults.late

    @property
    def live_runners(self) -> LiveRunners:
        """Who has registered by heartbeats."""
        return self._live_runners

    @property
    def workers(self) -> tuple[Worker, ...]:
        """The connected workers, in order of registration."""
        return tuple(self._workers)

    async def wait_for_workers(self, condition: Callable[[tuple[Worker, ...]], bool]) -> None:
        """Returns as soon as the connected workers fulfil a condition."""
        await self._workers.wait_for(condition)

    async def send_job(self, *, worker: Worker, pipeline: str, request_data: bytes) -> MediaAnswer:
        """Sends any job to a worker, past the gateway and the worker's capacity.

        For tests of what a gateway would never send.

        Raises:
            JobFailed: as soon as the job has no result; `WorkerError` has the worker's words.
        """
        job = self._jobs.hand_out(
            worker=worker, slots=None, pipeline=pipeline, request_data=request_data
        )
        # Only a job that is handed out as streamed gets anything else.
        return cast("MediaAnswer", await self._jobs.wait(job))

    async def __aenter__(self) -> Self:
        """Starts to listen, with a new certificate."""
        try:
            listener = socket.create_server(
                (self._host, self._requested_port),
                family=socket.AF_INET6 if ":" in self._host else socket.AF_INET,
            )
        except OSError as error:
            where = _address(self._host, self._requested_port)
            raise ConfigError(f"cannot listen on {where}: {error.strerror}") from None
        # asyncio sets this itself only on sockets that it made; without it answers take 40 ms more.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port = listener.getsockname()[1]
        self._certificate = make_certificate(self._host)
        self._gateway = Gateway(workers=self._workers, jobs=self._jobs, url=self.url)
        self._live_routes = LiveRunnerRoutes(runners=self._live_runners, url=self.url)
        await self._server.start(listener, self._certificate.tls)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops: nobody new, a last word to everybody there, then the connections close."""
        self._server.stop_accepting()
        # What still arrives on open connections is turned away.
        self._stopping = True
        self._jobs.abandon()
        for worker in self._workers:
            worker.end_stream(Status(UNAVAILABLE, STOPPING))
        if self._requests:
            _, stuck = await asyncio.wait(self._requests, timeout=_FAREWELL_S)
            for request in stuck:
                request.cancel()
        await self._server.stop()

    async def _app(self, scope: Message, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._requests.add(task)
        try:
            await self._serve_request(scope, receive, send)
        finally:
            self._requests.discard(task)

    async def _serve_request(self, scope: Message, receive: Receive, send: Send) -> None:
        head = read_head(scope)
        if self._misbehaviour.spoils_answers and head.path == "/aiResults":
            await self._misbehaviour.take_answer(head, receive, send)
            return
        if self._is_streamed_answer(head):
            chunks = body_chunks(receive, max_bytes=MAX_RESULT_BYTES)
            await respond(send, await self._ai_results.take_stream(head, chunks))
            return
        request = await read_request(head, receive, max_body_bytes=_max_body_bytes(head))
        if request.header("content-type").startswith("application/grpc"):
            await self._serve_call(request, receive, send)
            return
        if self._live_routes.has(request) and not self._stopping:
            await self._live_routes.serve(request, receive, send)
            return
        await respond(send, await self._route(request)(request))

    def _is_streamed_answer(self, head: Head) -> bool:
        return (
            (head.method, head.path) == ("POST", "/aiResults")
            and is_event_stream(head)
            and not self._stopping
        )

    async def _serve_call(self, request: Request, receive: Receive, send: Send) -> None:
        """Handles a gRPC call."""
        if request.http_version != "2":
            await respond(send, Response(status=505, body=b"gRPC needs HTTP/2\n"))
            return
        if request.path == registration.PATH and not self._stopping:
            await self._registration.serve(request, receive, send)
            return
        await start_stream(send)
        if self._stopping:
            await end_stream(send, Status(UNAVAILABLE, STOPPING))
        else:
            await end_stream(send, Status(UNIMPLEMENTED, f"unknown method {request.path}"))
            self._registration.was_overtaken(request.peer)

    def _route(self, request: Request) -> Handler:
        """Returns who handles an HTTP request."""
        method: str
        handler: Handler
        if self._stopping:
            return partial(_refuse, 503, STOPPING)
        if request.path == "/aiResults":
            method, handler = "POST", self._ai_results.__call__
        elif pipeline := PIPELINES.get(request.path.removeprefix("/")):
            method, handler = "POST", partial(self._gateway.generate, pipeline)
        elif request.path.startswith("/stream/"):
            method, handler = "GET", self._gateway.download
        elif request.path == "/status":
            method, handler = "GET", self._status
        elif request.path == "/misbehave":
            method, handler = "POST", self._misbehaviour.change
        else:
            return partial(_refuse, 404, "no such route")
        if request.method != method:
            return partial(_refuse, 405, f"{request.path} takes {method} only")
        if request.body_error is not None and request.path != "/aiResults":
            return partial(_refuse, request.body_error.status, str(request.body_error))
        return handler

    async def _status(self, _: Request) -> Response:
        document = {
            "version": self._version,
            "certificate": self.fingerprint,
            "capacity": summed(self._workers),
            "workers": [worker.describe() for worker in self._workers],
            "jobs": self._jobs.describe(),
            "faults": [asdict(fault) for fault in self.faults],
            "late": [asdict(fault) for fault in self.late],
        }
        return Response(
            status=200,
            body=json.dumps(document, indent=2).encode() + b"\n",
            media_type="application/json",
        )


def _max_body_bytes(head: Head) -> int:
    """Returns how much is read at this path."""
    if head.path == "/aiResults":
        return MAX_RESULT_BYTES
    # The last part also of what is on its way to a live runner.
    pipeline = PIPELINES.get(head.path.rpartition("/")[2])
    return MAX_UPLOAD_BYTES if pipeline and pipeline.file else MAX_REQUEST_BYTES


async def _refuse(status: int, reason: str, _: Request) -> Response:
    return Response(status=status, body=f"{reason}\n".encode())


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
