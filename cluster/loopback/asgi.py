"""Requests and responses over ASGI, as little of it as the orchestrator needs.

A request's body is always read to its end before its sender gets an answer: hypercorn drops
the whole HTTP/2 connection when a frame arrives for a stream that was answered already, and a
worker's registration may live on that connection.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

Headers = Sequence[tuple[bytes, bytes]]
"""Names and values in their order; a name may come again."""


class BodyError(Exception):
    """A body that did not arrive as a whole; `status` is what the sender is told."""

    def __init__(self, status: int, reason: str) -> None:
        """Takes the HTTP status and the reason."""
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """One HTTP request without its body."""

    method: str
    path: str
    http_version: str
    peer: str
    """`ip:port`."""
    headers: Headers
    """Names in lower case."""
    query: str = ""
    """As it came, without its question mark."""

    def header(self, name: str) -> str:
        """Returns a header's value as text; see `header_bytes`."""
        return self.header_bytes(name).decode("utf-8", "replace")

    def header_bytes(self, name: str) -> bytes:
        """Returns a header's value, empty where it is absent; the first, as Go's Header.Get."""
        wanted = name.lower().encode()
        return next((value for name, value in self.headers if name == wanted), b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Head):
    """One HTTP request with its body."""

    body: bytearray
    body_error: BodyError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One HTTP response."""

    status: int
    body: bytes
    media_type: str = "text/plain; charset=utf-8"
    headers: Headers = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedResponse:
    """One HTTP response whose body is sent as it comes."""

    body: AsyncIterator[bytes]
    media_type: str = ""
    """Empty where `headers` say it, or nobody does."""
    status: int = 200
    headers: Headers = ()


def read_head(scope: Message) -> Head:
    """Returns what stands before a request's body."""
    host, port = scope["client"]
    return Head(
        method=scope["method"],
        path=scope["path"],
        http_version=scope["http_version"],
        peer=format_peer(host, port),
        headers=[(bytes(name).lower(), bytes(value)) for name, value in scope["headers"]],
        query=bytes(scope.get("query_string", b"")).decode("latin-1"),
    )


def format_peer(host: str, port: int) -> str:
    """Returns `ip:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def body_chunks(receive: Receive, *, max_bytes: int) -> AsyncGenerator[bytes]:
    """Yields a body as it arrives; reads it to its end, also where it is over the bound.

    Raises:
        BodyError: at its end, for a body that is over the bound or did not arrive as a whole.
    """
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BodyError(400, "unexpected EOF: the connection ended before the body did")
        more = message.get("more_body", False)
        size += len(message["body"])
        if size <= max_bytes:
            yield message["body"]
    if size > max_bytes:
        raise BodyError(413, f"the body is larger than {max_bytes} bytes")


async def read_request(head: Head, receive: Receive, *, max_body_bytes: int) -> Request:
    """Reads a request to its end; a body with an error is not whole."""
    body = bytearray()
    error: BodyError | None = None
    try:
        async for chunk in body_chunks(receive, max_bytes=max_body_bytes):
            body += chunk
    except BodyError as broken:
        error = broken
    return Request(
        method=head.method,
        path=head.path,
        http_version=head.http_version,
        peer=head.peer,
        headers=head.headers,
        query=head.query,
        body=body,
        body_error=error,
    )


async def respond(send: Send, response: Response | StreamedResponse) -> None:
    """Sends a response; does nothing where the peer has gone."""
    headers = list(response.headers)
    if response.media_type:
        headers.append((b"content-type", response.media_type.encode("latin-1")))
    if isinstance(response, Response):
        headers.append((b"content-length", str(len(response.body)).encode()))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": False})
        return
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    async for chunk in response.body:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
