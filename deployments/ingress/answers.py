"""Results as HTTP bodies: the runner API's documents, with files as data URLs.

Written in pieces. Base64 of a video's frames is megabytes of text; as one string it would be
copied and escaped several times, in an event loop in which everybody else waits meanwhile.
"""

import base64
import json
import logging
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

from fastapi.responses import StreamingResponse

from deployments.schemas.base import Chunk, MediaFile, Result

logger = logging.getLogger("ray.serve")

PIECE_BYTES = 3 * 256 * 1024
"""Of a file at a time: a millisecond's work, and a multiple of three, so that base64 goes on
without padding."""


def document_response(result: Result) -> StreamingResponse:
    """Returns the response to a request that has been served."""
    pieces = _pieces(result)
    length = sum(
        len(piece) if isinstance(piece, bytes) else _base64_bytes(piece) for piece in pieces
    )
    return StreamingResponse(
        _written(pieces),
        media_type="application/json",
        headers={"Content-Length": str(length)},
    )


def events_response(first: Chunk, others: AsyncGenerator[Chunk, None]) -> StreamingResponse:
    """Returns the response to a request that is served chunk by chunk.

    Args:
        first: the first chunk. Who has it knows that the answer will not be an error.
        others: those after it; closed with the response.
    """
    return StreamingResponse(
        _events(first, others),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache"},
    )


def _pieces(result: Result) -> Sequence[bytes | MediaFile]:
    """The document's JSON, with the files where their base64 belongs."""
    mark = secrets.token_hex(16)
    urls = [f"{mark}{number}." for number in range(len(result.files))]
    written = result.document_json(urls)
    if not urls:
        return written
    pieces: list[bytes | MediaFile] = []
    for at, piece in enumerate(re.split(rf"{mark}(\d+)\.".encode(), b"".join(written))):
        if at % 2:
            file = result.files[int(piece)]
            pieces += (f"data:{file.media_type};base64,".encode(), file)
        else:
            pieces.append(piece)
    return pieces


def _base64_bytes(file: MediaFile) -> int:
    return (len(file.data) + 2) // 3 * 4


async def _written(pieces: Sequence[bytes | MediaFile]) -> AsyncIterator[bytes]:
    waiting = bytearray()
    for piece in pieces:
        view = memoryview(piece if isinstance(piece, bytes) else piece.data)
        for start in range(0, len(view), PIECE_BYTES):
            part = view[start : start + PIECE_BYTES]
            waiting += part if isinstance(piece, bytes) else base64.b64encode(part)
            if len(waiting) >= PIECE_BYTES:
                yield bytes(waiting)
                waiting.clear()
    yield bytes(waiting)


async def _events(first: Chunk, others: AsyncGenerator[Chunk, None]) -> AsyncIterator[bytes]:
    """Server-sent events as ai-runner's, which ends them with `[DONE]`."""
    async with aclosing(others):
        chunk = first
        yield _event(chunk)
        try:
            async for chunk in others:
                yield _event(chunk)
        except Exception:
            logger.exception("a stream broke off")
            # Clients read no error here: one of go-livepeer's ends at an event without choices
            # (server/ai_http.go).
            yield _event(chunk.finish("error"))
    yield b"data: [DONE]\n\n"


def _event(chunk: Chunk) -> bytes:
    return b"data: " + json.dumps(chunk.document(), separators=(",", ":")).encode() + b"\n\n"
