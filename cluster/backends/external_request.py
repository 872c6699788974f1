"""A validated request as the Go worker puts it to a container: JSON, or a multipart form.

Facts: go-livepeer, ai/worker/multipart.go (fields and number formats), server/ai_worker.go (file
names) and runner.gen.go (JSON). What the client left out is left out here too, so that the
container's own defaults hold.
"""

import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from cluster.ai_models import ModelKey
from deployments.registry import PIPELINES
from deployments.schemas.base import Request

CHUNK_BYTES = 256 * 1024
"""Small enough to leave the event loop to others in between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """The body of one POST, in pieces that are never joined."""

    content_type: str
    pieces: tuple[bytes, ...]

    @property
    def length_bytes(self) -> int:
        """Sum of the pieces."""
        return sum(map(len, self.pieces))

    async def chunks(self) -> AsyncIterator[memoryview]:
        """The pieces in slices."""
        for piece in self.pieces:
            view = memoryview(piece)
            for start in range(0, len(view), CHUNK_BYTES):
                yield view[start : start + CHUNK_BYTES]


def body_of(key: ModelKey, request: Request) -> Body:
    """Returns what to send to a container of this model."""
    pipeline = PIPELINES[key.pipeline]
    file = pipeline.file
    fields = request.model_dump(mode="json", exclude_unset=True, exclude={file, "model_id"})
    # A container refuses a job for another model, and one without a name was meant for this one.
    fields[pipeline.model_field] = key.model_id
    if not file:
        document = json.dumps(fields, separators=(",", ":")).encode()
        return Body(content_type="application/json", pieces=(document,))
    return _form(file, getattr(request, file), fields)


def _form(file: str, data: bytes, fields: dict[str, Any]) -> Body:
    """The file first, under a name that is its field's, then the fields."""
    boundary = secrets.token_hex(30)
    disposition = "Content-Disposition: form-data; name="
    parts = [
        f'--{boundary}\r\n{disposition}"{file}"; filename="{file}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n".encode(),
        data,
    ]
    for name, value in fields.items():
        head = f'\r\n--{boundary}\r\n{disposition}"{name}"\r\n\r\n'
        parts.append((head + _text(value)).encode())
    parts.append(f"\r\n--{boundary}--\r\n".encode())
    return Body(content_type=f"multipart/form-data; boundary={boundary}", pieces=tuple(parts))


def _text(value: object) -> str:
    """As Go's `strconv` and `%f` write it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:f}" if isinstance(value, float) else str(value)
