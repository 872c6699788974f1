"""image-to-image: the twelve parameters of the runner API, bounded.

Names and defaults are ai-runner's (runner/src/runner/routes/image_to_image.py).
"""

from typing import Annotated

from pydantic import Field

from deployments.schemas.base import Request
from deployments.schemas.images import Count, Guidance, InputFile, Loras, Prompt, Seed, Steps

Strength = Annotated[float, Field(gt=0, le=1)]
"""The share of the steps that are taken; without any there is nothing to compute."""


class ImageToImageRequest(Request):
    """Change an image as a text prompt says."""

    image: InputFile
    prompt: Prompt
    loras: Loras = ""
    strength: Strength = 0.8
    guidance_scale: Guidance = 7.5
    image_guidance_scale: Guidance = 1.5
    negative_prompt: Prompt = ""
    safety_check: bool = True
    seed: Seed | None = None
    num_inference_steps: Steps = 100
    num_images_per_prompt: Count = 1
