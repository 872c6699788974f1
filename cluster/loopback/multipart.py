"""multipart bodies (RFC 2046), strictly and fast.

The parsers at hand are lenient, where this one has to find every deviation, or take seconds
for 50 MB. It demands what go-livepeer's own worker sends: no preamble, CRLF, a closing
boundary and nothing after it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

_CRLF = b"\r\n"
_MAX_HEADER_BYTES = 8192


class MultipartError(Exception):
    """A body that breaks the rules; the message says where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of a multipart body."""

    headers: Mapping[str, str]
    """Names in lower case, values as sent."""
    data: bytes


def split_multipart(body: bytes | bytearray, boundary: str) -> list[Part]:
    """Returns the parts of a body.

    Raises:
        MultipartError: for a body that is not exactly parts between boundaries.
    """
    delimiter = b"--" + boundary.encode("latin-1")
    if not body.startswith(delimiter + _CRLF):
        raise MultipartError("the body does not start with its boundary")
    delimiter = _CRLF + delimiter
    parts: list[Part] = []
    # The first delimiter has no CRLF of its own; its end is the start of the first part.
    start = len(delimiter)
    while True:
        end = body.find(delimiter, start)
        if end < 0:
            raise MultipartError("unexpected EOF: the closing boundary is missing")
        after = end + len(delimiter)
        parts.append(_part(body, start, end, number=len(parts) + 1))
        if body[after : after + 2] == b"--":
            if body[after + 2 :] not in (b"", _CRLF):
                raise MultipartError("bytes after the closing boundary")
            return parts
        if body[after : after + 2] != _CRLF:
            raise MultipartError(f"part {len(parts)} ends in something other than the boundary")
        start = after + len(_CRLF)


def _part(body: bytes | bytearray, start: int, end: int, *, number: int) -> Part:
    """Parses what stands between two boundaries: headers, an empty line, data."""
    blank = body.find(_CRLF * 2, start, min(end, start + _MAX_HEADER_BYTES))
    if blank < 0:
        raise MultipartError(
            f"part {number} has no headers, or more than {_MAX_HEADER_BYTES} bytes"
        )
    headers: dict[str, str] = {}
    for line in body[start:blank].decode("latin-1").split("\r\n"):
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise MultipartError(f"part {number} has a header that is none: {line!r}")
        if name.lower() in headers:
            raise MultipartError(f"part {number} has two headers {name}")
        headers[name.lower()] = value.strip(" \t")
    return Part(headers=headers, data=bytes(memoryview(body)[blank + 4 : end]))
