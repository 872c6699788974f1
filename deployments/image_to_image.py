"""image-to-image: what diffusers' AutoPipeline loads, and instruct-pix2pix, which it does not.

How parameters are treated follows ai-runner (runner/src/runner/pipelines/image_to_image.py).
The answer has the input's size where the model can work on that, else the nearest it can.
"""

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from deployments.assembly import pipeline_class
from deployments.batching import Share
from deployments.diffusion import Drawing
from deployments.errors import BadRequest
from deployments.image_input import decode_image, header_size
from deployments.image_size import fit
from deployments.media import encode_png
from deployments.prompted import PromptedReplica
from deployments.schemas.image_to_image import ImageToImageRequest
from deployments.schemas.images import MAX_SIDE, MIN_SIDE

INSTRUCT_PIX2PIX = "StableDiffusionInstructPix2PixPipeline"
"""The pipeline class that timbrooks/instruct-pix2pix names in its model_index.json."""

CLASSES = {
    INSTRUCT_PIX2PIX: INSTRUCT_PIX2PIX,
    "StableDiffusionPipeline": "StableDiffusionImg2ImgPipeline",
    "StableDiffusionXLPipeline": "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusion3Pipeline": "StableDiffusion3Img2ImgPipeline",
    "FluxPipeline": "FluxImg2ImgPipeline",
}
"""By the class that a model names. Beside the first they are what diffusers' auto pipeline would
choose, which does not know the first."""


class ImageToImageReplica(PromptedReplica[ImageToImageRequest]):
    """Images from an image and a prompt."""

    def factory(self, snapshot: Path) -> Any:
        """Returns the class by the model's own word."""
        return pipeline_class(snapshot, CLASSES, otherwise="AutoPipelineForImage2Image")

    def load(self, snapshot: Path) -> None:
        """Loads the pipeline; instruct-pix2pix with the scheduler that the reference gives it."""
        super().load(snapshot)
        if type(self._pipe).__name__ == INSTRUCT_PIX2PIX:
            from diffusers import EulerAncestralDiscreteScheduler

            self._pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(
                self._pipe.scheduler.config
            )

    def warm_up_request(self) -> ImageToImageRequest:
        """Returns a usual size: a GPU on which that does not fit fails here."""
        grey = encode_png(np.full((512, 512, 3), 128, dtype=np.uint8)).data
        return ImageToImageRequest(
            image=grey, prompt="warm-up", strength=1.0, num_inference_steps=2
        )

    def describe(self, request: ImageToImageRequest) -> str:
        """Returns `1 image, 50 steps, strength 0.8`."""
        return f"{super().describe(request)}, strength {request.strength:g}"

    def share(self, request: ImageToImageRequest) -> Share | None:
        """Requests with images of one size share, if their parameters agree."""
        size = header_size(request.image)
        return size and self.share_of(request, size=size, images=request.num_images_per_prompt)

    def drawing(self, request: ImageToImageRequest) -> Drawing:
        """Returns what to draw.

        Raises:
            BadRequest: the image cannot be read, or `strength` leaves no step to take.
        """
        strength = self._strength(request)
        image = fit(
            decode_image(request.image),
            multiple=self.side_multiple,
            min_side=MIN_SIDE,
            max_side=MAX_SIDE,
        )
        return self.plan(
            request,
            {
                # For Flux, which would otherwise enlarge any image to 1024x1024.
                "height": image.height,
                "width": image.width,
                "strength": strength,
                "image_guidance_scale": request.image_guidance_scale,
            },
            size=image.size,
            image=image,
        )

    def _strength(self, request: ImageToImageRequest) -> Fraction:
        """Returns the strength that makes whole steps of the request's, rounded down.

        Some pipelines would round up: of four steps at 0.8 Flux takes all, and then nothing is
        left of the image. A fraction, as floats make a little less than 1 of 49 * (1 / 49).

        Raises:
            BadRequest: there is no step. Models that take few steps anyway take one.
        """
        steps = self.steps_for(request)
        taken = math.floor(steps * Fraction(request.strength).limit_denominator(10**6))
        if taken < 1 and self.is_guided and "strength" in self._takes:
            raise BadRequest(
                f"strength: {request.strength:g} of {steps} steps is less than one step; "
                f"strength times num_inference_steps must be at least 1"
            )
        return Fraction(max(1, taken), steps)
