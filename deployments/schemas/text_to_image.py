"""text-to-image: the eleven parameters of the runner API, bounded.

Names and defaults are ai-runner's (runner/src/runner/routes/text_to_image.py); the reference
has no bounds, so a single request could exhaust a GPU.
"""

from pydantic import Field

from deployments.schemas.base import Request
from deployments.schemas.images import (
    MAX_PROMPT_CHARS,
    Count,
    Guidance,
    Loras,
    Prompt,
    Seed,
    Side,
    Steps,
)


class TextToImageRequest(Request):
    """Generate images from a text prompt."""

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT_CHARS)
    loras: Loras = ""
    height: Side = 576
    width: Side = 1024
    guidance_scale: Guidance = 7.5
    negative_prompt: Prompt = ""
    safety_check: bool = True
    seed: Seed | None = None
    num_inference_steps: Steps = 50
    num_images_per_prompt: Count = 1
