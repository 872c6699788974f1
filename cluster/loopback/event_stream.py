"""Event streams of workers: go-livepeer's rules (server/ai_http.go, AIResults), and no slack.

The real orchestrator skips lines that do not start with `data: ` and data that is no JSON,
panics where `choices` is empty, stops without a word at a line that is too long, and stops
reading after the finishing chunk, which hangs the POST. Here each of them is a fault.
"""

from collections.abc import Iterator
from typing import Any

from cluster.loopback.documents import BadDocument, CompletionChunk
from cluster.loopback.go_json import loads, marshal

MEDIA_TYPE = "text/event-stream"
MAX_LINE_BYTES = 65_535
"""What Go's bufio.Scanner takes; orchestrator and gateway both read with one."""

_DATA = b"data: "
_NO_USAGE = {"completion_tokens": 0, "prompt_tokens": 0, "total_tokens": 0}


class EventFault(Exception):
    """A stream that the real orchestrator would mistreat."""


class EventStream:
    """Reads one worker's event stream as it arrives."""

    def __init__(self) -> None:
        """Starts before the first byte."""
        self._buffer = bytearray()
        self._count = 0
        self._wants_blank = False
        self.finished = False
        """Whether the finishing chunk has come."""

    def feed(self, data: bytes | bytearray) -> Iterator[bytes]:
        """Yields the events that are complete now, as the gateway writes them.

        Raises:
            EventFault: for the first thing that is wrong.
        """
        self._buffer += data
        while (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            self._check_length(line)
            event = self._line(line.removesuffix(b"\r"))
            if event:
                yield event
        self._check_length(self._buffer)

    def close(self) -> None:
        """Checks that the stream may end here.

        Raises:
            EventFault: it may not.
        """
        if self._buffer or self._wants_blank:
            raise EventFault(f"the stream ends within event {self._count}, without an empty line")
        if not self.finished:
            raise EventFault(
                f"the stream ends after {self._count} event(s) without a finish_reason"
            )

    def _line(self, line: bytes) -> bytes:
        """Returns the event that a line holds; nothing for the empty line after it."""
        if self._wants_blank:
            if line:
                raise EventFault(f"no empty line after event {self._count}")
            self._wants_blank = False
            return b""
        if self.finished:
            raise EventFault(f"something follows the finishing chunk: {line[:40]!r}")
        self._count += 1
        if not line.startswith(_DATA):
            raise EventFault(
                f"event {self._count} does not start with 'data: ', it would be skipped:"
                f" {line[:40]!r}"
            )
        chunk = self._read(line.removeprefix(_DATA))
        event = _DATA + marshal(chunk)
        if len(event) > MAX_LINE_BYTES:
            raise EventFault(
                f"event {self._count} grows to {len(event)} bytes when the orchestrator escapes"
                f" it for the gateway, which reads lines of {MAX_LINE_BYTES}"
            )
        self._wants_blank = True
        return event + b"\n\n"

    def _read(self, data: bytes) -> dict[str, Any]:
        try:
            chunk = CompletionChunk.read(loads(data))
        except ValueError as error:
            raise EventFault(f"event {self._count} is not JSON: {error}") from None
        except BadDocument as error:
            raise EventFault(f"event {self._count}: {error}") from None
        # Only the first choice is looked at (server/ai_http.go, handleAIRequest).
        self.finished = bool(chunk["choices"][0].get("finish_reason"))
        if self.finished and "usage" not in chunk:
            raise EventFault(f"event {self._count} finishes the stream and has no usage")
        # Where a worker says nothing Go's struct has zeros.
        return {"usage": _NO_USAGE, **chunk}

    def _check_length(self, line: bytes | bytearray) -> None:
        if len(line) > MAX_LINE_BYTES:
            raise EventFault(
                f"a line after event {self._count} is longer than {MAX_LINE_BYTES} bytes"
            )
