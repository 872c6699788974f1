"""image-to-text: an image and an optional prompt in, text out.

Names and defaults are ai-runner's (runner/src/runner/routes/image_to_text.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from deployments.schemas.base import Request, Result
from deployments.schemas.images import InputFile

MAX_PROMPT_CHARS = 10_000
"""Several pages. The model's own limit, in tokens, is checked by the replica that knows it."""


class ImageToTextRequest(Request):
    """Describe an image, or answer a question about it."""

    image: InputFile
    prompt: str = Field(default="", max_length=MAX_PROMPT_CHARS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageToTextResult(Result):
    """What the model says about the image."""

    text: str

    def document(self, urls: Sequence[str]) -> dict[str, Any]:  # noqa: ARG002 (has no files)
        """Returns ai-runner's ImageToTextResponse."""
        return {"text": self.text}
