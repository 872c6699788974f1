"""gRPC over HTTP/2, by hand: a length before each message, and a status in the trailers.

See https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md. By hand, because a
`grpc.aio` server cannot share its port with the HTTP routes, and an orchestrator does.
"""

import struct
from dataclasses import dataclass
from urllib.parse import quote

from cluster.loopback.asgi import Send

_PREFIX = struct.Struct(">?I")  # compressed, length
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


@dataclass(frozen=True, slots=True)
class Status:
    """How a call ends."""

    code: int
    details: str = ""


OK = Status(0)
UNKNOWN = 2
INVALID_ARGUMENT = 3
ALREADY_EXISTS = 6
UNIMPLEMENTED = 12
UNAVAILABLE = 14


class FramingError(Exception):
    """Bytes that are not exactly one plain message."""


def decode_message(body: bytes | bytearray) -> bytes:
    """Returns the only message of a unary request.

    Raises:
        FramingError: for anything else.
    """
    if len(body) < _PREFIX.size:
        raise FramingError("no message")
    compressed, length = _PREFIX.unpack_from(body)
    if compressed:
        raise FramingError("compressed messages are not supported")
    if length != len(body) - _PREFIX.size:
        raise FramingError(f"a message of {length} bytes in a body of {len(body)}")
    return bytes(body[_PREFIX.size :])


async def start_stream(send: Send) -> None:
    """Sends the response headers."""
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"application/grpc")],
            "trailers": True,
        }
    )


async def send_message(send: Send, message: bytes) -> None:
    """Sends one message of a stream."""
    framed = _PREFIX.pack(False, len(message)) + message
    await send({"type": "http.response.body", "body": framed, "more_body": True})


async def end_stream(send: Send, status: Status) -> None:
    """Ends a stream with its status."""
    trailers = [(b"grpc-status", str(status.code).encode())]
    if status.details:
        trailers.append((b"grpc-message", quote(status.details, safe=_PRINTABLE).encode()))
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    await send({"type": "http.response.trailers", "headers": trailers, "more_trailers": False})
