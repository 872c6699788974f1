"""What all requests and results share.

A request is a pydantic model with the runner API's names and defaults. A result holds its
media as finished file bytes and knows the document that refers to them, so that each
transport (multipart to an orchestrator, data URLs over HTTP) only chooses the urls. A request
that wants a stream is answered with chunks instead.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from deployments.errors import BadRequest


class Request(BaseModel):
    """One request to a model, validated.

    `model_id` chose the model before validation; replicas ignore it.
    """

    model_config = ConfigDict(
        frozen=True, extra="ignore", allow_inf_nan=False, protected_namespaces=()
    )

    model_id: str = ""

    @property
    def wants_stream(self) -> bool:
        """Whether to answer with `Chunk`s as they are computed, instead of with one `Result`."""
        return False

    def for_http(self) -> "Request":
        """Returns what to run for a caller of the HTTP API, where its answer is another one."""
        return self

    @model_validator(mode="before")
    @classmethod
    def _null_means_absent(cls, payload: Any) -> Any:
        """Drops nulls: Go marshals an absent file as null (ai/worker/runner.gen.go)."""
        if isinstance(payload, Mapping):
            return {name: value for name, value in payload.items() if value is not None}
        return payload

    @classmethod
    def parse(cls, payload: object) -> Self:
        """Validates a decoded JSON object.

        Raises:
            BadRequest: with every parameter that is wrong, and what is wrong with it.
        """
        try:
            return cls.model_validate(payload)
        except ValidationError as error:
            raise BadRequest(explain(error)) from None


def explain(error: ValidationError) -> str:
    """Returns pydantic's findings as one line: `width: must be ...; prompt: ...`."""
    findings = []
    for finding in error.errors(include_url=False, include_input=False):
        where = ".".join(str(part) for part in finding["loc"])
        what = finding["msg"].removeprefix("Value error, ")
        findings.append(f"{where}: {what}" if where else what)
    return "; ".join(findings)


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaFile:
    """One finished file: the bytes that reach the client, untouched."""

    data: bytes
    media_type: str
    """Such as image/png, video/mp4, audio/wav."""


class Result(ABC):
    """What a replica answers a request with."""

    @property
    def files(self) -> Sequence[MediaFile]:
        """The media files of this result, in the order in which `document` takes their urls."""
        return ()

    @abstractmethod
    def document(self, urls: Sequence[str]) -> dict[str, Any]:
        """Returns the runner API's JSON response, with `urls[i]` standing for `files[i]`."""

    def document_json(self, urls: Sequence[str]) -> Sequence[bytes]:
        """Returns `document` as JSON, in pieces that follow each other.

        For whoever sends it, in an event loop: a result with megabytes of text brings them
        written out from the replica, since writing would hold up everything else there.
        """
        return [json.dumps(self.document(urls), separators=(",", ":")).encode()]


ResultT_co = TypeVar("ResultT_co", bound=Result, covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed(Generic[ResultT_co]):
    """A result and who computed it."""

    result: ResultT_co
    replica: str
    """Ray Serve's replica id."""
    compute_s: float
    """Seconds from when the model began with the request up to the finished result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk(ABC):
    """One piece of a streamed answer, and the last one if it `finishes`."""

    replica: str
    """Ray Serve's replica id."""
    compute_s: float
    """Seconds from when the replica took the request up to this chunk."""

    @property
    @abstractmethod
    def finishes(self) -> bool:
        """Whether the stream ends with this chunk. Nothing may follow it."""

    @abstractmethod
    def document(self) -> dict[str, Any]:
        """Returns the runner API's JSON object for this chunk."""

    @abstractmethod
    def finish(self, reason: str) -> Self:
        """Returns a chunk that ends, after this one, a stream that was cut off.

        Args:
            reason: what the client sees as the reason, `error` say.
        """
