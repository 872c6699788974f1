"""What text-to-image and image-to-image share: prompts, guidance, LoRAs, several images.

How parameters are treated follows ai-runner (runner/src/runner/pipelines and routes): image i has
seed + i, `|` separates the prompts of several text encoders, models that are distilled without
guidance run without, and those that are distilled to a number of steps take that many.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import PIL.Image

from deployments.diffusion import Drawing, ImagesReplica, Rendered, choose_seed
from deployments.loras import Loras
from deployments.schemas.images import SIDE_MULTIPLE, PromptedRequest
from deployments.special_models import special

PATCHING_FAMILIES = ("Flux", "StableDiffusion3")
"""Pipeline classes that join 2x2 latents into a token, so sides come in twice `SIDE_MULTIPLE`."""

MAX_ENCODERS = 3
"""Stable Diffusion 3 has the most text encoders."""

PromptedT = TypeVar("PromptedT", bound=PromptedRequest)


class PromptedReplica(ImagesReplica[PromptedT]):
    """Runs one diffusers pipeline that answers a prompt with images."""

    def load(self, snapshot: Path) -> None:
        """Loads the pipeline, to which LoRAs can be added."""
        super().load(snapshot)
        if special(self.args.model_id).steps is not None:
            from diffusers import EulerDiscreteScheduler

            # Its few steps were trained to begin at pure noise, where SDXL's own never begin.
            self._pipe.scheduler = EulerDiscreteScheduler.from_config(
                self._pipe.scheduler.config, timestep_spacing="trailing"
            )
        self._loras = Loras(pipe=self._pipe, models_dir=self.args.models_dir)

    def infer_together(
        self, requests: Sequence[PromptedT], raise_if_cancelled: Callable[[], None]
    ) -> Sequence[Rendered]:
        """Renders all images of all requests, with the LoRAs that all of them ask for."""
        import torch

        try:
            self._loras.apply(requests[0].loras)
            return super().infer_together(requests, raise_if_cancelled)
        except torch.OutOfMemoryError:
            self._loras.unload_idle()
            raise

    def plan(
        self,
        request: PromptedT,
        arguments: Mapping[str, Any],
        *,
        size: tuple[int, int],
        image: PIL.Image.Image | None = None,
    ) -> Drawing:
        """Returns what to draw.

        Args:
            request: what is asked for.
            arguments: what the pipeline is given beside the parameters that all requests have.
            size: width and height of each image in pixels; more than that is cropped.
            image: what each image starts from, if anything.
        """
        first = choose_seed(request.seed)
        return Drawing(
            arguments={
                "guidance_scale": request.guidance_scale if self.is_guided else 0.0,
                "num_inference_steps": self.steps_for(request),
                **arguments,
            },
            prompts={
                "prompt": request.prompt,
                **self.split("prompt", request.prompt),
                # None at all if it is blank: SDXL then guides away from zeros, not from "".
                **self.split("negative_prompt", request.negative_prompt),
            },
            seeds=range(first, first + request.num_images_per_prompt),
            size=size,
            image=image,
            safety_check=request.safety_check,
        )

    def describe(self, request: PromptedT) -> str:
        """Returns `3 images, 50 steps`."""
        count = request.num_images_per_prompt
        images = "1 image" if count == 1 else f"{count} images"
        return f"{images}, {self.steps_for(request)} steps"

    @property
    def side_multiple(self) -> int:
        """What the sides of this model's images must be multiples of, in pixels."""
        patching = type(self._pipe).__name__.startswith(PATCHING_FAMILIES)
        return SIDE_MULTIPLE * 2 if patching else SIDE_MULTIPLE

    @property
    def is_guided(self) -> bool:
        """Whether this model runs with guidance."""
        return special(self.args.model_id).guided

    def steps_for(self, request: PromptedT) -> int:
        """Returns how many steps this model takes where the request asks for some."""
        return special(self.args.model_id).steps or request.num_inference_steps

    def split(self, name: str, text: str) -> dict[str, str]:
        """Returns the pipeline's arguments for a text with `|` between its encoders' prompts.

        A pipeline with fewer encoders keeps what is left over, `|` included, in its last. There
        are none where all prompts are blank.
        """
        names = [name, *(f"{name}_{number}" for number in range(2, MAX_ENCODERS + 1))]
        names = [name for name in names if name in self._takes]
        prompts = [part.strip() for part in text.split("|", max(0, len(names) - 1))]
        return dict(zip(names, filter(None, prompts), strict=False))
