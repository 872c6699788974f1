"""Live runners over HTTP: how they register, how they are found, and the way to them.

The way is a reverse proxy: what a client sends to `/apps/{runner_id}/app/{path}` goes to the
runner's url with that path, and what the runner answers comes back as it comes, its headers and
redirects included (go-livepeer, server/ai_http.go; where a runner names no type of its content,
Go guesses one and we do not). Both paths are joined as Go does it: `..` in the client's, which
arrives where it is written `..%2f`, leads out of the runner's. The certificate of a runner with an
https url is checked.
"""

import asyncio
import io
import itertools
import json
import logging
import posixpath
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from http import HTTPStatus
from urllib.parse import quote, urlsplit

import aiohttp
from yarl import URL

from cluster.loopback.asgi import (
    Headers,
    Receive,
    Request,
    Response,
    Send,
    StreamedResponse,
    respond,
)
from cluster.loopback.live_runners import LiveRunners, RunnerError

_log = logging.getLogger(__name__)

HEARTBEAT = "/runners/heartbeat"
DISCOVERY = "/discovery"
APPS = "/apps/"

HOP_BY_HOP = frozenset(
    {
        *(b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
        *(b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"),
    }
)
"""What is between two neighbours only (Go's net/http/httputil/reverseproxy.go)."""

NOT_TO_RUNNERS = HOP_BY_HOP | {
    *(b"host", b"content-length", b"expect"),
    *(b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"),
}
"""Said anew, or to us only."""

NOT_TO_CLIENTS = HOP_BY_HOP | {b"date", b"server"}
"""hypercorn says these itself."""

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
        if not forwarding.cancelled():
            forwarding.result()

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
        with ExitStack() as held:
            try:
                url, session = held.enter_context(self._runners.session(runner_id))
            except RunnerError as error:
                await respond(send, Response(status=error.status, body=f"{error}\n".encode()))
                return
            number = next(self._numbers)
            session_id = session["Livepeer-Session-Id"]
            _log.info("request %d: %s, handed to %s", number, session_id, runner_id)
            end = "failed: its client has left, or the orchestrator stops"
            answer: aiohttp.ClientResponse | None = None
            try:
                async with _asked(url, path, request, session) as answer:
                    # Before its client can know: the next request may come at once.
                    answer.content.on_eof(held.close)
                    await respond(
                        send,
                        StreamedResponse(
                            status=answer.status,
                            body=_pieces(answer),
                            headers=_passed_on(answer.raw_headers, but=NOT_TO_CLIENTS),
                        ),
                    )
                    fine = answer.status < HTTPStatus.BAD_REQUEST
                    end = f"{'answered with' if fine else 'failed:'} {answer.status}"
            except aiohttp.ClientError as error:
                if answer is None:
                    end = f"failed: {error}"
                    held.close()
                    gateway = HTTPStatus.BAD_GATEWAY
                    await respond(send, Response(status=gateway, body=f"{error}\n".encode()))
                else:
                    # The server cuts its client off in turn, as it sees no end of the answer.
                    end = f"failed: its answer was cut off: {error}"
            except Exception as error:
                end = f"failed: {error!r}"
                raise
            finally:
                _log.info("request %d %s", number, end)


@asynccontextmanager
async def _asked(
    url: str, path: str, request: Request, session: Mapping[str, str]
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Sends a client's request to a runner, with the headers of its session; yields the answer.

    Raises:
        aiohttp.ClientError: there is none.
    """
    theirs = NOT_TO_RUNNERS.union(name.lower().encode() for name in session)
    async with (
        aiohttp.ClientSession(
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
        ) as http,
        http.request(
            request.method,
            _joined(url, path, request.query),
            data=io.BytesIO(request.body) if request.body else None,
            headers=[
                *(
                    (name.decode("latin-1"), value.decode("utf-8", "replace"))
                    for name, value in _passed_on(request.headers, but=theirs)
                ),
                *session.items(),
            ],
            allow_redirects=False,
        ) as answer,
    ):
        yield answer


def _passed_on(headers: Headers, *, but: frozenset[bytes]) -> Headers:
    """Headers, by names in lower case, without some and without those that `Connection` names."""
    lower = [(name.lower(), value) for name, value in headers]
    between = {
        named.strip().lower()
        for name, value in lower
        if name == b"connection"
        for named in value.split(b",")
    }
    return [(name, value) for name, value in lower if name not in but | between]


def _joined(url: str, path: str, query: str) -> URL:
    """The runner's url with the client's path, as Go's url.JoinPath makes it, and query.

    Raises:
        aiohttp.InvalidURL: there is no such port; only who asks there learns that, as in Go.
    """
    parts = urlsplit(url)
    joined = posixpath.normpath(f"/{parts.path}/{path}").lstrip("/")
    slash = "/" if path.endswith("/") and joined else ""
    asked = f"?{query}" if query else ""
    try:
        origin = URL(url).origin()
    except ValueError as error:
        raise aiohttp.InvalidURL(parts.netloc.rpartition("@")[2], str(error)) from None
    return URL(f"{origin}/{quote(joined)}{slash}{asked}", encoded=True)


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
