"""audio-to-text: the runner API's parameters and response.

Names, accepted values and defaults are ai-runner's
(runner/src/runner/routes/audio_to_text.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import (
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_serializer,
    field_validator,
)

from deployments.schemas.base import Request, Result

MAX_FILE_BYTES = 50 * 1024 * 1024
"""The reference's limit, which answers 413 beyond it."""

Timestamps = Literal["sentence", "word", "none"]

SPELLINGS: dict[str, Timestamps] = {
    "true": "sentence",
    "1": "sentence",
    "sentence": "sentence",
    "false": "none",
    "0": "none",
    "word": "word",
}
"""What the wire says, in any case, and what it means."""

MAX_METADATA_CHARS = 10_000
"""A JSON object that holds a duration."""


class AudioToTextRequest(Request):
    """Transcribe speech."""

    audio: bytes = Field(max_length=MAX_FILE_BYTES, repr=False)
    """The file, as it came."""
    return_timestamps: Timestamps = Field(
        default="sentence", json_schema_extra={"type": "string", "default": "true"}
    )
    metadata: str = Field(default="{}", max_length=MAX_METADATA_CHARS, repr=False)
    """Gateways put the duration there. Our replicas measure it instead; ai-runner believes it."""

    @field_validator("return_timestamps", mode="before")
    @classmethod
    def _spelling(cls, value: object) -> Timestamps:
        meaning = SPELLINGS.get(str(value).lower())
        if meaning is None:
            raise ValueError("must be `true`, `false`, `sentence` or `word`")
        return meaning

    @field_serializer("return_timestamps", when_used="json")
    def _on_the_wire(self, value: Timestamps) -> str:
        return "false" if value == "none" else value

    @field_validator("metadata", mode="wrap")
    @classmethod
    def _may_be_anything(cls, value: object, check: ValidatorFunctionWrapHandler) -> str:
        try:
            text: str = check(value)
        except ValidationError:
            return "{}"
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A sentence or a word and when it was said."""

    text: str
    start_s: float | None
    end_s: float | None
    """None where the recording ends before the sentence does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioToTextResult(Result):
    """A transcription."""

    text: str
    chunks: tuple[Chunk, ...]
    """As the model put them; empty when no timestamps were wanted."""

    def document(self, urls: Sequence[str]) -> dict[str, Any]:  # noqa: ARG002 (has no files)
        """Returns ai-runner's TextResponse."""
        return {
            "text": self.text,
            "chunks": [
                {"timestamp": [chunk.start_s, chunk.end_s], "text": chunk.text}
                for chunk in self.chunks
            ],
        }
