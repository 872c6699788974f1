"""A tenth pipeline, as somebody would add one: a schema, a replica and a line of the registry.

It spells a text by the spelling alphabet that is its model, whole or a letter at a time.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from deployments.errors import BadRequest
from deployments.registry import Pipeline
from deployments.replica import Replica
from deployments.schemas.base import Chunk, Request, Result
from deployments.schemas.responses import ImageToTextResponse


class SpellingRequest(Request):
    """Spell a text."""

    text: Annotated[str, Field(min_length=1, max_length=100)]
    times: Annotated[int, Field(ge=1, le=1_000_000)] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SpellingResult(Result):
    """A spelled text."""

    text: str

    def document(self, urls: Sequence[str]) -> dict[str, Any]:  # noqa: ARG002 (it has no files)
        """Returns it."""
        return {"text": self.text}


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter(Chunk):
    """A spelled letter."""

    word: str
    finishes: bool = False

    def document(self) -> dict[str, Any]:
        """Returns it."""
        return {"text": self.word}

    def finish(self, reason: str) -> "Letter":
        """Returns an end."""
        return replace(self, word=reason, finishes=True)


class SpellingReplica(Replica[SpellingRequest, str, SpellingResult]):
    """Spells by an alphabet."""

    def load(self, snapshot: Path) -> None:
        """Reads the alphabet."""
        self._alphabet: dict[str, str] = json.loads((snapshot / "alphabet.json").read_text())

    def warm_up_request(self) -> SpellingRequest:
        """Returns a letter."""
        return SpellingRequest(text="a")

    def infer(self, request: SpellingRequest, raise_if_cancelled: Callable[[], None]) -> str:
        """Spells a text, a thousand letters a second."""
        words = []
        for letter in request.text * request.times:
            raise_if_cancelled()
            words.append(self._word(letter))
            time.sleep(0.001)
        return " ".join(words)

    def encode(self, request: SpellingRequest, raw: str) -> SpellingResult:  # noqa: ARG002 (the contract of all replicas)
        """Returns the text as the result."""
        return SpellingResult(text=raw)

    def describe(self, request: SpellingRequest) -> str:
        """Returns `5 letters`."""
        return f"{len(request.text) * request.times} letters"

    async def stream(
        self, request: SpellingRequest, *, timeout_s: float
    ) -> AsyncGenerator[Letter, None]:
        """Spells a text, some letters a second."""
        ends_at = time.monotonic() + timeout_s
        for _ in range(request.times):
            for letter in request.text:
                if time.monotonic() > ends_at:
                    return
                yield Letter(word=self._word(letter), replica=self.replica_id, compute_s=0.0)
                await asyncio.sleep(0.02)
        yield Letter(word="", finishes=True, replica=self.replica_id, compute_s=0.0)

    def _word(self, letter: str) -> str:
        if letter not in self._alphabet:
            raise BadRequest(f"text: {letter!r} is not in this alphabet")
        return self._alphabet[letter]


SPELLING = Pipeline(
    name="spelling",
    capability=38,
    request=SpellingRequest,
    response=ImageToTextResponse,
    replica="tests.e2e.spelling:SpellingReplica",
)
