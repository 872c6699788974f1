"""upscale: the six parameters of the runner API.

Names and defaults are ai-runner's (runner/src/runner/routes/upscale.py).
"""

from deployments.schemas.images import ImagesRequest, InputFile, Steps


class UpscaleRequest(ImagesRequest):
    """Enlarge an image four times, guided by a text prompt."""

    image: InputFile
    num_inference_steps: Steps = 75
