"""Requests and responses over ASGI, as little of it as the orchestrator needs.

A request's body is always read to its end before anybody answers: hypercorn drops the whole
HTTP/2 connection when a frame arrives for a stream that was answered already, and a worker's
registration may live on that connection.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class BodyError(Exception):
    """A body that did not arrive as a whole; `status` is what the sender is told."""

    def __init__(self, status: int, reason: str) -> None:
        """Takes the HTTP status and the reason."""
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request with its body."""

    method: str
    path: str
    http_version: str
    peer: str
    """`ip:port`."""
    headers: Mapping[bytes, bytes]
    """Names in lower case; of repeated headers the first, as Go's Header.Get."""
    body: bytearray
    body_error: BodyError | None

    def header(self, name: str) -> str:
        """Returns a header's value, empty where it is absent."""
        return self.headers.get(name.lower().encode(), b"").decode("utf-8", "replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One HTTP response."""

    status: int
    body: bytes
    media_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


async def read_request(scope: Message, receive: Receive, *, max_body_bytes: int) -> Request:
    """Reads a request to its end; of a body over the bound nothing is kept."""
    headers: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        headers.setdefault(bytes(name).lower(), bytes(value))
    host, port = scope["client"]
    body = bytearray()
    size = 0
    error: BodyError | None = None
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            error = BodyError(400, "unexpected EOF: the connection ended before the body did")
            break
        more = message.get("more_body", False)
        size += len(message["body"])
        if size > max_body_bytes:
            body.clear()
            error = BodyError(413, f"the body is larger than {max_body_bytes} bytes")
        else:
            body += message["body"]
    return Request(
        method=scope["method"],
        path=scope["path"],
        http_version=scope["http_version"],
        peer=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        headers=headers,
        body=body,
        body_error=error,
    )


async def respond(send: Send, response: Response) -> None:
    """Sends a response; does nothing where the peer has gone."""
    headers = [
        (b"content-type", response.media_type.encode("latin-1")),
        (b"content-length", str(len(response.body)).encode()),
        *((name.lower().encode(), value.encode()) for name, value in response.headers.items()),
    ]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": False})
