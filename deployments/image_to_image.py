"""image-to-image: what diffusers' AutoPipeline loads, and instruct-pix2pix, which it does not.

How parameters are treated follows ai-runner (runner/src/runner/pipelines/image_to_image.py).
The answer has the input's size where the model can work on that, else the nearest it can.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deployments.diffusion import ImagesReplica, Rendered, choose_seed, count_words
from deployments.errors import BadRequest
from deployments.image_input import decode_image
from deployments.image_size import fit
from deployments.media import encode_png
from deployments.schemas.image_to_image import ImageToImageRequest
from deployments.schemas.images import MAX_SIDE, MIN_SIDE

INSTRUCT_PIX2PIX = "StableDiffusionInstructPix2PixPipeline"
"""The pipeline class that timbrooks/instruct-pix2pix names in its model_index.json."""


class ImageToImageReplica(ImagesReplica[ImageToImageRequest]):
    """Images from an image and a prompt."""

    def factory(self, snapshot: Path) -> Any:
        """Returns the class by the model's own word."""
        from diffusers import AutoPipelineForImage2Image, StableDiffusionInstructPix2PixPipeline

        index = json.loads((snapshot / "model_index.json").read_text())
        if index["_class_name"] == INSTRUCT_PIX2PIX:
            return StableDiffusionInstructPix2PixPipeline
        return AutoPipelineForImage2Image

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
        images = count_words(request.num_images_per_prompt, "image")
        return f"{images}, {request.num_inference_steps} steps, strength {request.strength:g}"

    def infer(
        self, request: ImageToImageRequest, raise_if_cancelled: Callable[[], None]
    ) -> Rendered:
        """Renders all images of the request.

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
        first = choose_seed(request.seed)
        self._loras.apply(request.loras)
        return self.render(
            {
                **self.split("prompt", request.prompt),
                **self.split("negative_prompt", request.negative_prompt),
                # For Flux, which would otherwise enlarge any image to 1024x1024.
                "height": image.height,
                "width": image.width,
                "strength": strength,
                "guidance_scale": 0.0 if self.is_turbo else request.guidance_scale,
                "image_guidance_scale": request.image_guidance_scale,
                "num_inference_steps": request.num_inference_steps,
            },
            seeds=range(first, first + request.num_images_per_prompt),
            size=image.size,
            image=image,
            safety_check=request.safety_check,
            raise_if_cancelled=raise_if_cancelled,
        )

    def _strength(self, request: ImageToImageRequest) -> float:
        """Returns a strength at which there is at least one step.

        Raises:
            BadRequest: there is none. Turbo models get theirs, as they take so few.
        """
        steps = request.num_inference_steps
        # diffusers takes int(steps * strength) steps and fails without any.
        if "strength" not in self._takes or int(steps * request.strength) >= 1:
            return request.strength
        # As floats 49 * (1 / 49) is a little less than 1: the next number up is more.
        if self.is_turbo or math.isclose(steps * request.strength, 1):
            return min(1.0, math.nextafter(1 / steps, 2))
        raise BadRequest(
            f"strength: {request.strength:g} of {steps} steps is less than one step; "
            f"strength times num_inference_steps must be at least 1"
        )
