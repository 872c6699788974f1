"""text-to-image: Stable Diffusion, SDXL, Flux and whatever else diffusers' AutoPipeline loads."""

from pathlib import Path
from typing import Any

from deployments.assembly import pipeline_class
from deployments.batching import Share
from deployments.diffusion import Drawing
from deployments.prompted import PromptedReplica
from deployments.schemas.text_to_image import TextToImageRequest

CLASSES = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
)
"""Pipeline classes that are what diffusers' auto pipeline would choose, too."""


class TextToImageReplica(PromptedReplica[TextToImageRequest]):
    """Images from a prompt."""

    def factory(self, snapshot: Path) -> Any:
        """Returns the class by the model's own word."""
        return pipeline_class(
            snapshot, {name: name for name in CLASSES}, otherwise="AutoPipelineForText2Image"
        )

    def warm_up_request(self) -> TextToImageRequest:
        """Returns the gateway's default size: a GPU on which that does not fit fails here."""
        return TextToImageRequest(prompt="warm-up", width=512, height=512, num_inference_steps=2)

    def describe(self, request: TextToImageRequest) -> str:
        """Returns `1024x576, 1 image, 50 steps`."""
        return f"{request.width}x{request.height}, {super().describe(request)}"

    def share(self, request: TextToImageRequest) -> Share | None:
        """Requests of one size share, if their steps, guidance and LoRAs agree."""
        return self.share_of(
            request, size=(request.width, request.height), images=request.num_images_per_prompt
        )

    def drawing(self, request: TextToImageRequest) -> Drawing:
        """Returns what to draw."""
        multiple = self.side_multiple
        return self.plan(
            request,
            {
                # Rendered a little larger where the model needs it, and cropped to the exact size.
                "height": -(-request.height // multiple) * multiple,
                "width": -(-request.width // multiple) * multiple,
            },
            size=(request.width, request.height),
        )
