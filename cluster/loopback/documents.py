"""The JSON that workers answer with: go-livepeer's structs (ai/worker/runner.gen.go).

Strict where its decoder is strict (an integer is not written `1.0`, a string is no number) and
also where it is not: there a missing field silently becomes zero, an empty list or null.
Unknown fields are dropped, as it does, so that callers here see what a gateway's callers see.
"""

import json
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.loopback.go_json import INT64

Int64 = Annotated[int, Field(ge=INT64.start, lt=INT64.stop)]
Count = Annotated[int, Field(ge=0, lt=INT64.stop)]

_SHOWN = 100  # characters of a wrong value


class BadDocument(Exception):
    """A worker's JSON that is not what the pipeline answers; the message names the field."""


class Document(BaseModel):
    """An object of an answer."""

    model_config = ConfigDict(strict=True, extra="ignore")

    @classmethod
    def read(cls, value: Any) -> dict[str, Any]:
        """Returns a decoded document as Go would marshal it again.

        Raises:
            BadDocument: naming the first field that is wrong.
        """
        try:
            return cls.model_validate(value).model_dump(exclude_none=True)
        except ValidationError as error:
            raise BadDocument(_explain(error)) from None


class MediaUrl(Document):
    """A file, by its name."""

    url: str


class SeededMedia(MediaUrl):
    """A picture or video."""

    seed: Int64
    nsfw: bool


class Images(Document):
    """What the pipelines answer that draw."""

    images: Annotated[list[SeededMedia], Field(min_length=1)]


class Video(Document):
    """What image-to-video answers: go-livepeer has no struct of its own for videos."""

    images: Annotated[list[SeededMedia], Field(min_length=1, max_length=1)]


class Audio(Document):
    """What text-to-speech answers."""

    audio: MediaUrl


class TextChunk(Document):
    """A piece of a transcript; Whisper leaves the end of the last one open."""

    timestamp: Annotated[list[float | None], Field(min_length=2, max_length=2)]
    text: str


class Transcript(Document):
    """What audio-to-text answers."""

    text: str
    chunks: list[TextChunk]


class Text(Document):
    """What image-to-text answers."""

    text: str


class Masks(Document):
    """What segment-anything-2 answers: JSON in strings."""

    masks: str
    scores: str
    logits: str


class Message(Document):
    """What a chat model says."""

    role: str
    content: str


class Usage(Document):
    """Tokens of one llm request."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count


class Choice(Document):
    """One of an answer's texts."""

    index: Int64
    finish_reason: Annotated[str, Field(min_length=1)]
    message: Message


class Completion(Document):
    """What llm answers in one piece."""

    id: str
    model: str
    created: Int64
    choices: Annotated[list[Choice], Field(min_length=1)]
    usage: Usage


class ChoiceDelta(Document):
    """The next piece of one of an answer's texts; `finish_reason` only stands in the last."""

    index: Int64
    finish_reason: str | None = None
    delta: Message


class CompletionChunk(Document):
    """What llm answers piece by piece."""

    id: str
    model: str
    created: Int64
    choices: Annotated[list[ChoiceDelta], Field(min_length=1)]
    usage: Usage | None = None


def media_entries(document: Any) -> Iterator[dict[str, Any]]:
    """Yields the objects in a document that name a file by their `url`."""
    if isinstance(document, dict):
        if "url" in document:
            yield document
        document = list(document.values())
    if isinstance(document, list):
        for value in document:
            yield from media_entries(value)


def _explain(error: ValidationError) -> str:
    """Returns the first finding as `images[0].seed: Input should be a valid integer: 1.0`."""
    finding = error.errors(include_url=False)[0]
    where = "".join(
        f"[{step}]" if isinstance(step, int) else f".{step}" for step in finding["loc"]
    ).removeprefix(".")
    what = f"{finding['msg']}: {json.dumps(finding['input'])[:_SHOWN]}"
    return f"{where}: {what}" if where else what
