"""upscale: Stable Diffusion's x4 upscaler. The answer is exactly four times as wide and high."""

from pathlib import Path
from typing import Any

import numpy as np

from deployments.batching import Share
from deployments.diffusion import Drawing, ImagesReplica, choose_seed
from deployments.errors import BadRequest
from deployments.image_input import decode_image, header_size
from deployments.image_size import pad
from deployments.media import encode_png
from deployments.schemas.images import MIN_SIDE, SIDE_MULTIPLE
from deployments.schemas.upscale import UpscaleRequest

FACTOR = 4

MAX_INPUT_PIXELS = 512 * 512
"""The UNet works at the input's full resolution and the decoder at sixteen times that: from
512x512 it decodes 2048x2048 in float32, as large an image as any pipeline here may answer with."""


class UpscaleReplica(ImagesReplica[UpscaleRequest]):
    """A larger image from an image and a prompt."""

    def factory(self, snapshot: Path) -> Any:  # noqa: ARG002 (the same for all models)
        """Returns the only class there is."""
        from diffusers import StableDiffusionUpscalePipeline

        return StableDiffusionUpscalePipeline

    def warm_up_request(self) -> UpscaleRequest:
        """Returns a small image; the largest takes a CPU minutes."""
        grey = encode_png(np.full((128, 128, 3), 128, dtype=np.uint8)).data
        return UpscaleRequest(image=grey, prompt="warm-up", num_inference_steps=2)

    def describe(self, request: UpscaleRequest) -> str:
        """Returns `1 image, 75 steps`."""
        return f"1 image, {request.num_inference_steps} steps"

    def share(self, request: UpscaleRequest) -> Share | None:
        """Requests with images of one size share, if their steps agree."""
        size = header_size(request.image)
        return size and self.share_of(request, size=(size[0] * FACTOR, size[1] * FACTOR))

    def drawing(self, request: UpscaleRequest) -> Drawing:
        """Returns what to draw.

        Raises:
            BadRequest: the image cannot be read or is too large.
        """
        image = decode_image(request.image)
        if image.width * image.height > MAX_INPUT_PIXELS:
            raise BadRequest(
                f"image: {image.width}x{image.height} pixels are too many to enlarge {FACTOR} "
                f"times, at most {MAX_INPUT_PIXELS} are taken, 512x512 say"
            )
        return Drawing(
            arguments={"num_inference_steps": request.num_inference_steps},
            prompts={"prompt": request.prompt},
            seeds=[choose_seed(request.seed)],
            size=(image.width * FACTOR, image.height * FACTOR),
            # diffusers would round sides down to what the decoder can answer with.
            image=pad(image, multiple=SIDE_MULTIPLE, min_side=MIN_SIDE),
            safety_check=request.safety_check,
        )
