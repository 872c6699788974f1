"""text-to-image: the eleven parameters of the runner API.

Names and defaults are ai-runner's (runner/src/runner/routes/text_to_image.py).
"""

from pydantic import Field

from deployments.schemas.images import Prompt, PromptedRequest, Side, Steps


class TextToImageRequest(PromptedRequest):
    """Generate images from a text prompt."""

    prompt: Prompt = Field(min_length=1)
    height: Side = 576
    width: Side = 1024
    num_inference_steps: Steps = 50
