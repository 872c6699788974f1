"""text-to-image: Stable Diffusion, SDXL, Flux and whatever else diffusers' AutoPipeline loads.

How parameters are treated follows ai-runner (runner/src/runner/pipelines/text_to_image.py and
routes/text_to_image.py): image i has seed + i, `|` separates the prompts of several text
encoders, distilled Turbo models run without guidance.
"""

import inspect
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.loading import load_pipeline
from deployments.loras import Loras
from deployments.media import encode_png, to_uint8
from deployments.replica import Replica
from deployments.safety import SafetyChecker
from deployments.schemas.images import SIDE_MULTIPLE, Image, ImagesResult
from deployments.schemas.text_to_image import TextToImageRequest

MAX_PIXELS_PER_PASS = 2 * 1024 * 1024
"""Images of one request share a pass up to this many pixels. Two of 1024x1024, four with
guidance, keep a large GPU busy; more would take memory in proportion and gain little."""

TURBO_MODELS = frozenset({"stabilityai/sd-turbo", "stabilityai/sdxl-turbo"})
"""Distilled without guidance: any would spoil their images."""

PATCHING_FAMILIES = ("Flux", "StableDiffusion3")
"""Pipeline classes that join 2x2 latents into a token, so sides come in twice `SIDE_MULTIPLE`."""

MAX_ENCODERS = 3
"""Stable Diffusion 3 has the most text encoders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """What the model returned: N x H x W x 3 pixels, and a seed and a flag for each image."""

    pixels: NDArray[np.uint8]
    seeds: Sequence[int]
    nsfw: Sequence[bool]


class TextToImageReplica(Replica[TextToImageRequest, Rendered, ImagesResult]):
    """Images from a prompt."""

    def load(self, snapshot: Path) -> None:
        """Loads the pipeline and, if it is there, the safety checker."""
        from diffusers import AutoPipelineForText2Image

        models_dir = self.args.models_dir
        self._pipe: Any = load_pipeline(AutoPipelineForText2Image, snapshot)
        # One image at a time through the decoder, which needs the most memory of all parts.
        if hasattr(getattr(self._pipe, "vae", None), "enable_slicing"):
            self._pipe.vae.enable_slicing()
        self._takes = frozenset(inspect.signature(self._pipe.__call__).parameters)
        self._loras = Loras(pipe=self._pipe, models_dir=models_dir)
        self._safety = SafetyChecker.load(models_dir)

    def warm_up_request(self) -> TextToImageRequest:
        """Returns the gateway's default size: a GPU on which that does not fit fails here."""
        return TextToImageRequest(prompt="warm-up", width=512, height=512, num_inference_steps=2)

    def describe(self, request: TextToImageRequest) -> str:
        """Returns `1024x576, 1 image, 50 steps`."""
        count = request.num_images_per_prompt
        images = "1 image" if count == 1 else f"{count} images"
        return f"{request.width}x{request.height}, {images}, {request.num_inference_steps} steps"

    def infer(
        self, request: TextToImageRequest, raise_if_cancelled: Callable[[], None]
    ) -> Rendered:
        """Renders all images of the request, in as few passes as memory allows."""
        first = secrets.randbelow(2**32) if request.seed is None else request.seed
        seeds = range(first, first + request.num_images_per_prompt)
        self._loras.apply(request.loras)
        per_pass = max(1, MAX_PIXELS_PER_PASS // (request.width * request.height))
        pixels = np.concatenate(
            [
                self._render(request, seeds[start : start + per_pass], raise_if_cancelled)
                for start in range(0, len(seeds), per_pass)
            ]
        )
        raise_if_cancelled()
        nsfw = [False] * len(seeds)
        if request.safety_check and self._safety is not None:
            nsfw = self._safety.flag(pixels)
        return Rendered(pixels=pixels, seeds=seeds, nsfw=nsfw)

    def encode(self, request: TextToImageRequest, raw: Rendered) -> ImagesResult:  # noqa: ARG002 (the contract of all replicas)
        """Encodes each image as PNG."""
        return ImagesResult(
            images=tuple(
                Image(file=encode_png(pixels), seed=seed, nsfw=nsfw)
                for pixels, seed, nsfw in zip(raw.pixels, raw.seeds, raw.nsfw, strict=True)
            )
        )

    def _render(
        self,
        request: TextToImageRequest,
        seeds: Sequence[int],
        raise_if_cancelled: Callable[[], None],
    ) -> NDArray[np.uint8]:
        """Returns N x H x W x 3 pixels of one pass, an image for each seed."""
        import torch

        def on_step_end(
            _pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Any]
        ) -> dict[str, Any]:
            raise_if_cancelled()
            return tensors

        patching = type(self._pipe).__name__.startswith(PATCHING_FAMILIES)
        multiple = SIDE_MULTIPLE * 2 if patching else SIDE_MULTIPLE
        wanted: dict[str, Any] = {
            **self._split("prompt", request.prompt),
            **self._split("negative_prompt", request.negative_prompt),
            # Rendered a little larger where the model needs it, and cropped to the exact size.
            "height": -(-request.height // multiple) * multiple,
            "width": -(-request.width // multiple) * multiple,
            "guidance_scale": (
                0.0 if self.args.model_id in TURBO_MODELS else request.guidance_scale
            ),
            "num_inference_steps": request.num_inference_steps,
            "num_images_per_prompt": len(seeds),
            # A generator an image: its noise does not depend on the others of its pass.
            "generator": [torch.Generator(self._pipe.device).manual_seed(seed) for seed in seeds],
            "output_type": "pt",
            "callback_on_step_end": on_step_end,
        }
        output = self._pipe(**{name: wanted[name] for name in wanted if name in self._takes})
        return to_uint8(output.images)[:, : request.height, : request.width]

    def _split(self, name: str, text: str) -> dict[str, str]:
        """Returns the pipeline's arguments for a text with `|` between its encoders' prompts.

        A pipeline with fewer encoders keeps what is left over, `|` included, in its last.
        """
        names = [name, *(f"{name}_{number}" for number in range(2, MAX_ENCODERS + 1))]
        names = [name for name in names if name in self._takes]
        prompts = [part.strip() for part in text.split("|", max(0, len(names) - 1))]
        return dict(zip(names, filter(None, prompts), strict=False)) or {name: text}
