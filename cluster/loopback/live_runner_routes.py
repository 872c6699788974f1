"""Live runners over HTTP: how they register, how they are found, and the way to them.

The way is a reverse proxy: what a client sends to `/apps/{runner_id}/app/{path}` goes to the
runner's url with that path, and what the runner answers comes back as it comes, its headers and
redirects included (go-livepeer, server/ai_http.go). Both paths are joined as Go does it: `..` in
the client's, which arrives where it is written `..%2f`, leads out of the runner's. The certificate
of a runner with an https url is checked.
"""

import asyncio
import itertools
import json
import logging
import posixpath
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from http import HTTPStatus
from urllib.parse import quote, urlsplit

import aiohttp
from yarl import URL

from cluster.loopback.asgi import Receive, Request, Response, Send, StreamedResponse, respond
from cluster.loopback.live_runners import LiveRunners, RunnerError

_log = logging.getLogger(__name__)

HEARTBEAT = "/runners/heartbeat"
DISCOVERY = "/discovery"
APPS = "/apps/"

HOP_BY_HOP = frozenset(
    {
        *(b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
        *(b"host", b"content-length", b"expect"),
    }
)
"""What is between two neighbours only, or said anew."""

SAID_BY_US = frozenset({b"content-type", b"date", b"server"})
"""Of an answer, beside what is between neighbours."""

_CONNECT_S = 10.0


class LiveRunnerRoutes:
    """Answers runners and their clients."""

    def __init__(self, *, runners: LiveRunners, url: str) -> None:
        """Takes the registry and the orchestrator's own url."""
        self._runners = runners
        self._url = url
        self._numbers = itertools.count()

    def has(self, request: Request) -> bool:
        """Whether a request is for this door."""
        return request.path == DISCOVERY or request.path.startswith((APPS, "/runners/"))

    async def serve(self, request: Request, receive: Receive, send: Send) -> None:
        """Answers one request; one to a runner ends there when its client is gone."""
        if broken := request.body_error:
            await respond(send, Response(status=broken.status, body=f"{broken}\n".encode()))
            return
        if not request.path.startswith(APPS):
            await respond(send, self._answer(request))
            return
        forwarding = asyncio.create_task(self._forward(request, send))
        leaving = asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait({forwarding, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (forwarding, leaving):
                task.cancel()
            await asyncio.gather(forwarding, leaving, return_exceptions=True)

    def _answer(self, request: Request) -> Response:
        try:
            return self._registry(request)
        except RunnerError as error:
            return Response(status=error.status, body=f"{error}\n".encode())

    def _registry(self, request: Request) -> Response:
        authorization = request.header("authorization")
        if request.path == DISCOVERY:
            if request.method not in ("GET", "HEAD"):
                raise RunnerError(405, "Method Not Allowed")
            ready = self._runners.discovery(orchestrator=self._url)
            return _json([{"address": self._url, **({"runners": ready} if ready else {})}])
        if request.method != "POST":
            raise RunnerError(405, "Method Not Allowed")
        if request.path == HEARTBEAT:
            return _json(
                self._runners.heartbeat(
                    bytes(request.body), authorization=authorization, orchestrator=self._url
                )
            )
        runner_id, _, action = request.path.removeprefix("/runners/").partition("/")
        if action != "unregister":
            raise RunnerError(404, "no such route")
        self._runners.unregister(runner_id, authorization=authorization)
        return Response(status=204, body=b"")

    async def _forward(self, request: Request, send: Send) -> None:
        runner_id, _, path = request.path.removeprefix(APPS).partition("/app/")
        async with AsyncExitStack() as stack:
            try:
                url, headers = stack.enter_context(self._runners.session(runner_id))
                number = next(self._numbers)
                session_id = headers["Livepeer-Session-Id"]
                _log.info("request %d: %s, handed to %s", number, session_id, runner_id)
                http = await stack.enter_async_context(
                    aiohttp.ClientSession(
                        auto_decompress=False,
                        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
                    )
                )
                answer = await stack.enter_async_context(
                    http.request(
                        request.method,
                        _joined(url, path, request.query),
                        data=bytes(request.body) or None,
                        headers={
                            **{
                                name.decode("latin-1"): value.decode("latin-1")
                                for name, value in request.headers.items()
                                if name not in HOP_BY_HOP
                            },
                            **headers,
                        },
                        allow_redirects=False,
                    )
                )
            except RunnerError as error:
                await respond(send, Response(status=error.status, body=f"{error}\n".encode()))
                return
            except aiohttp.ClientError as error:
                _log.info("request %d failed: %s", number, error)
                gateway = HTTPStatus.BAD_GATEWAY
                await respond(send, Response(status=gateway, body=f"{error}\n".encode()))
                return
            try:
                await respond(
                    send,
                    StreamedResponse(
                        status=answer.status,
                        body=_pieces(answer),
                        media_type=answer.headers.get("Content-Type", ""),
                        headers={
                            name: value
                            for name, value in answer.headers.items()
                            if name.lower().encode() not in HOP_BY_HOP | SAID_BY_US
                        },
                    ),
                )
            except aiohttp.ClientError as error:
                # The server cuts its client off in turn, as it sees no end of the answer.
                _log.info("request %d failed: its answer was cut off: %s", number, error)
                return
            end = "answered with" if answer.status < HTTPStatus.BAD_REQUEST else "failed:"
            _log.info("request %d %s %d", number, end, answer.status)


def _joined(url: str, path: str, query: str) -> URL:
    """The runner's url with the client's path, as Go's url.JoinPath makes it, and query."""
    parts = urlsplit(url)
    joined = posixpath.normpath(f"/{parts.path}/{path}").lstrip("/")
    slash = "/" if path.endswith("/") and joined else ""
    asked = f"?{query}" if query else ""
    return URL(f"{parts.scheme}://{parts.netloc}/{quote(joined)}{slash}{asked}", encoded=True)


async def _pieces(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """A body as it comes, not as it was cut on its way."""
    async for piece in answer.content.iter_any():
        yield piece


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _json(document: object) -> Response:
    return Response(
        status=200, body=json.dumps(document).encode() + b"\n", media_type="application/json"
    )
