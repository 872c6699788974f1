"""text-to-image: the eleven parameters of the runner API, bounded.

Names and defaults are ai-runner's (runner/src/runner/routes/text_to_image.py); the reference
has no bounds, so a single request could exhaust a GPU.
"""

from typing import Annotated

from pydantic import Field

from deployments.schemas.base import Request
from deployments.schemas.images import (
    MAX_IMAGES,
    MAX_SEED,
    MAX_SIDE,
    MAX_STEPS,
    MIN_SEED,
    MIN_SIDE,
    SIDE_MULTIPLE,
)

MAX_PROMPT_CHARS = 10_000
"""Text encoders read at most 77 (CLIP) or 512 (T5) tokens; the tokenizer still reads it all."""

MAX_LORAS_CHARS = 2_000
"""A JSON object of a few repository ids and weights."""

MAX_GUIDANCE = 100.0
"""Guidance multiplies latents; far beyond this float16 overflows to black images."""

Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE, multiple_of=SIDE_MULTIPLE)]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Seed = Annotated[int, Field(ge=MIN_SEED, le=MAX_SEED)]


class TextToImageRequest(Request):
    """Generate images from a text prompt."""

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT_CHARS)
    loras: str = Field(default="", max_length=MAX_LORAS_CHARS)
    height: Side = 576
    width: Side = 1024
    guidance_scale: float = Field(default=7.5, ge=0, le=MAX_GUIDANCE)
    negative_prompt: str = Field(default="", max_length=MAX_PROMPT_CHARS)
    safety_check: bool = True
    seed: Seed | None = None
    num_inference_steps: Steps = 50
    num_images_per_prompt: int = Field(default=1, ge=1, le=MAX_IMAGES)
