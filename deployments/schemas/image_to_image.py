"""image-to-image: the twelve parameters of the runner API.

Names and defaults are ai-runner's (runner/src/runner/routes/image_to_image.py).
"""

from typing import Annotated

from pydantic import Field

from deployments.schemas.images import Guidance, InputFile, PromptedRequest, Steps

Strength = Annotated[float, Field(gt=0, le=1)]
"""The share of the steps that are taken; without any there is nothing to compute."""


class ImageToImageRequest(PromptedRequest):
    """Change an image as a text prompt says."""

    image: InputFile
    strength: Strength = 0.8
    image_guidance_scale: Guidance = 1.5
    num_inference_steps: Steps = 100
