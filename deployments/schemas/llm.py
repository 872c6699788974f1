"""llm: chat messages in, text out, at once or as a stream of chunks.

Names and defaults of the request are ai-runner's (runner/src/runner/routes/utils.py,
`LLMRequest`), as are the bounds of temperature, top_p and max_tokens (pipelines/llm.py,
`GenerationConfig`). What the model itself bounds, its context and its vocabulary, the replica
checks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deployments.schemas.base import Chunk, Request, Result

MAX_CONTENT_CHARS = 1_000_000
"""Of all messages together: more than the largest contexts hold, yet it is all tokenised."""

MAX_MESSAGES = 4_096
"""Chat templates take a step of a Python interpreter for each."""

MAX_TEMPERATURE = 2.0
"""The reference's bound; hotter is noise."""

ALL_TOKENS = -1
"""`top_k` that leaves every token in."""

FinishReason = Literal["stop", "length"]


class Message(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(frozen=True)

    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=MAX_CONTENT_CHARS)
    """pydantic looks into a text only if it is bounded: JSON can carry half a surrogate pair, at
    which tokenizers fail."""


class LLMRequest(Request):
    """Continue a chat."""

    messages: Annotated[tuple[Message, ...], Field(max_length=MAX_MESSAGES, repr=False)]
    model: str = ""
    max_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=0.7, ge=0, le=MAX_TEMPERATURE)
    top_p: float = Field(default=1.0, ge=0, le=1)
    top_k: int = Field(default=ALL_TOKENS, ge=ALL_TOKENS)
    stream: bool = False

    @property
    def wants_stream(self) -> bool:
        """`stream`."""
        return self.stream

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        """Bounds the messages' length before anybody tokenises them.

        That there is one is said here: as a `min_length` it would be said of wrong ones too.
        """
        if not self.messages:
            raise ValueError("messages: there must be at least one")
        chars = sum(len(message.content) for message in self.messages)
        if chars > MAX_CONTENT_CHARS:
            raise ValueError(
                f"messages: {chars} characters are more than {MAX_CONTENT_CHARS} in all"
            )
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """Which answer this is, of which model."""

    id: str
    model: str
    created_s: int
    """Unix time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens, as the model counted them."""

    prompt_tokens: int
    completion_tokens: int
    """Everything that was generated, the end token included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMResult(Result):
    """A whole answer."""

    completion: Completion
    text: str
    finish_reason: str
    """Our replicas give a `FinishReason`; what another runner's models give is passed on."""
    usage: Usage

    def document(self, urls: Sequence[str]) -> dict[str, Any]:  # noqa: ARG002 (it has no files)
        """Returns ai-runner's LLMResponse with a `message`."""
        return _document(self.completion, "message", self.text, self.finish_reason, self.usage)


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMChunk(Chunk):
    """The text that was added since the last chunk."""

    completion: Completion
    text: str
    finish_reason: str = ""
    """Empty in all but the last."""
    usage: Usage
    """Up to here."""

    @property
    def finishes(self) -> bool:
        """Whether it has a finish reason."""
        return bool(self.finish_reason)

    def document(self) -> dict[str, Any]:
        """Returns ai-runner's LLMResponse with a `delta`."""
        return _document(self.completion, "delta", self.text, self.finish_reason, self.usage)

    def finish(self, reason: str) -> "LLMChunk":
        """Returns a chunk without text that ends the stream."""
        return replace(self, text="", finish_reason=reason)


def _document(
    completion: Completion, part: str, text: str, finish_reason: str, usage: Usage
) -> dict[str, Any]:
    """Returns the response; `choices` has exactly one entry, which orchestrators rely on."""
    return {
        "id": completion.id,
        "model": completion.model,
        "created": completion.created_s,
        "choices": [
            {
                "index": 0,
                part: {"role": "assistant", "content": text},
                "finish_reason": finish_reason,
            }
        ],
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        },
    }
