"""text-to-image: Stable Diffusion, SDXL, Flux and whatever else diffusers' AutoPipeline loads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from deployments.diffusion import ImagesReplica, Rendered, choose_seed, count_words
from deployments.schemas.text_to_image import TextToImageRequest


class TextToImageReplica(ImagesReplica[TextToImageRequest]):
    """Images from a prompt."""

    def factory(self, snapshot: Path) -> Any:  # noqa: ARG002 (the same for all models)
        """Returns diffusers' choice by the model's files."""
        from diffusers import AutoPipelineForText2Image

        return AutoPipelineForText2Image

    def warm_up_request(self) -> TextToImageRequest:
        """Returns the gateway's default size: a GPU on which that does not fit fails here."""
        return TextToImageRequest(prompt="warm-up", width=512, height=512, num_inference_steps=2)

    def describe(self, request: TextToImageRequest) -> str:
        """Returns `1024x576, 1 image, 50 steps`."""
        images = count_words(request.num_images_per_prompt, "image")
        return f"{request.width}x{request.height}, {images}, {request.num_inference_steps} steps"

    def infer(
        self, request: TextToImageRequest, raise_if_cancelled: Callable[[], None]
    ) -> Rendered:
        """Renders all images of the request."""
        first = choose_seed(request.seed)
        self._loras.apply(request.loras)
        multiple = self.side_multiple
        return self.render(
            {
                **self.split("prompt", request.prompt),
                **self.split("negative_prompt", request.negative_prompt),
                # Rendered a little larger where the model needs it, and cropped to the exact size.
                "height": -(-request.height // multiple) * multiple,
                "width": -(-request.width // multiple) * multiple,
                "guidance_scale": 0.0 if self.is_turbo else request.guidance_scale,
                "num_inference_steps": request.num_inference_steps,
            },
            seeds=range(first, first + request.num_images_per_prompt),
            size=(request.width, request.height),
            safety_check=request.safety_check,
            raise_if_cancelled=raise_if_cancelled,
        )
