"""upscale: the six parameters of the runner API, bounded.

Names and defaults are ai-runner's (runner/src/runner/routes/upscale.py).
"""

from deployments.schemas.base import Request
from deployments.schemas.images import InputFile, Prompt, Seed, Steps


class UpscaleRequest(Request):
    """Enlarge an image four times, guided by a text prompt."""

    image: InputFile
    prompt: Prompt
    safety_check: bool = True
    seed: Seed | None = None
    num_inference_steps: Steps = 75
