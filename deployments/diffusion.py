"""What all diffusers pipelines share: loading, cancelling, seeds, passes, prompts, safety.

`DiffusionReplica` runs any diffusers pipeline. `ImagesReplica` adds what those have in common
that answer with images. How parameters are treated follows ai-runner
(runner/src/runner/pipelines and routes): image i has seed + i, `|` separates the prompts of
several text encoders, distilled Turbo models run without guidance.
"""

import inspect
import secrets
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from deployments.loading import load_pipeline
from deployments.loras import Loras
from deployments.media import encode_png, to_uint8
from deployments.replica import RawT, Replica, RequestT, ResultT
from deployments.safety import SafetyChecker
from deployments.schemas.images import SIDE_MULTIPLE, Image, ImagesResult

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


class DiffusionReplica(Replica[RequestT, RawT, ResultT]):
    """Runs one diffusers pipeline."""

    @abstractmethod
    def factory(self, snapshot: Path) -> Any:
        """Returns the diffusers class that loads these files."""

    def load(self, snapshot: Path) -> None:
        """Loads the pipeline and, if it is there, the safety checker."""
        self._pipe: Any = load_pipeline(self.factory(snapshot), snapshot)
        # Most pipelines decode with one; the few others go without what is done for it.
        self._vae: Any = getattr(self._pipe, "vae", None)
        self._vae_dtype = None if self._vae is None else self._vae.dtype
        self._takes = frozenset(inspect.signature(self._pipe.__call__).parameters)
        self._safety = SafetyChecker.load(self.args.models_dir)

    def call(self, arguments: Mapping[str, Any], raise_if_cancelled: Callable[[], None]) -> Any:
        """Returns the pipeline's output for those of the arguments that it takes."""

        def on_step_end(
            _pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Any]
        ) -> dict[str, Any]:
            raise_if_cancelled()
            return tensors

        def callback(_step: int, _timestep: Any, _latents: Any) -> None:
            raise_if_cancelled()

        wanted = {
            **arguments,
            "output_type": "pt",
            # Pipelines take the one or, if they are older, the other.
            "callback_on_step_end": on_step_end,
            "callback": callback,
        }
        if self._vae is not None:
            # Pipelines widen float16 decoders for a while; one that failed then left it wide.
            self._vae.to(self._vae_dtype)
        return self._pipe(**{name: wanted[name] for name in wanted if name in self._takes})

    def generators(self, seeds: Sequence[int]) -> list[Any]:
        """Returns a generator an image: its noise does not depend on the others of its pass."""
        import torch

        return [torch.Generator(self._pipe.device).manual_seed(seed) for seed in seeds]

    def flags(self, images: NDArray[np.uint8], *, wanted: bool) -> list[bool]:
        """Returns for each of N x H x W x 3 images whether it may be offensive, if `wanted`."""
        if not wanted or self._safety is None:
            return [False] * len(images)
        return self._safety.flag(images)


class ImagesReplica(DiffusionReplica[RequestT, Rendered, ImagesResult]):
    """Runs one diffusers pipeline that answers with images."""

    def load(self, snapshot: Path) -> None:
        """Loads the pipeline, to which LoRAs can be added."""
        super().load(snapshot)
        # One image at a time through the decoder, which needs the most memory of all parts.
        if hasattr(self._vae, "enable_slicing"):
            self._vae.enable_slicing()
        self._loras = Loras(pipe=self._pipe, models_dir=self.args.models_dir)

    def render(
        self,
        arguments: Mapping[str, Any],
        *,
        seeds: Sequence[int],
        size: tuple[int, int],
        image: PIL.Image.Image | None = None,
        safety_check: bool,
        raise_if_cancelled: Callable[[], None],
    ) -> Rendered:
        """Renders all images of a request, in as few passes as memory allows.

        Args:
            arguments: what the pipeline is given beside seeds and counts.
            seeds: one an image.
            size: width and height of each image in pixels; more than that is cropped.
            image: what each image starts from, for pipelines that take one.
            safety_check: whether the images are to be checked.
            raise_if_cancelled: called after each step.
        """
        width, height = size
        per_pass = max(1, MAX_PIXELS_PER_PASS // (width * height))
        passes = [seeds[start : start + per_pass] for start in range(0, len(seeds), per_pass)]
        pixels = np.concatenate(
            [
                to_uint8(self._pass(arguments, of_pass, image, raise_if_cancelled).images)
                for of_pass in passes
            ]
        )[:, :height, :width]
        raise_if_cancelled()
        return Rendered(pixels=pixels, seeds=seeds, nsfw=self.flags(pixels, wanted=safety_check))

    def _pass(
        self,
        arguments: Mapping[str, Any],
        seeds: Sequence[int],
        image: PIL.Image.Image | None,
        raise_if_cancelled: Callable[[], None],
    ) -> Any:
        """Returns the pipeline's output, an image for each seed."""
        each: dict[str, Any] = {
            "num_images_per_prompt": len(seeds),
            "generator": self.generators(seeds),
        }
        if image is not None:
            # Given once, some pipelines encode it with the first generator only, for all.
            each["image"] = [image] * len(seeds)
        return self.call({**arguments, **each}, raise_if_cancelled)

    def encode(self, request: RequestT, raw: Rendered) -> ImagesResult:  # noqa: ARG002 (the contract of all replicas)
        """Encodes each image as PNG."""
        return ImagesResult(
            images=tuple(
                Image(file=encode_png(pixels), seed=seed, nsfw=nsfw)
                for pixels, seed, nsfw in zip(raw.pixels, raw.seeds, raw.nsfw, strict=True)
            )
        )

    @property
    def side_multiple(self) -> int:
        """What the sides of this model's images must be multiples of, in pixels."""
        patching = type(self._pipe).__name__.startswith(PATCHING_FAMILIES)
        return SIDE_MULTIPLE * 2 if patching else SIDE_MULTIPLE

    @property
    def is_turbo(self) -> bool:
        """Whether this model runs without guidance."""
        return self.args.model_id in TURBO_MODELS

    def split(self, name: str, text: str) -> dict[str, str]:
        """Returns the pipeline's arguments for a text with `|` between its encoders' prompts.

        A pipeline with fewer encoders keeps what is left over, `|` included, in its last.
        """
        names = [name, *(f"{name}_{number}" for number in range(2, MAX_ENCODERS + 1))]
        names = [name for name in names if name in self._takes]
        prompts = [part.strip() for part in text.split("|", max(0, len(names) - 1))]
        return dict(zip(names, filter(None, prompts), strict=False)) or {name: text}


def choose_seed(seed: int | None) -> int:
    """Returns the request's seed, or a random one of 32 bits."""
    return secrets.randbelow(2**32) if seed is None else seed


def count_words(count: int, noun: str) -> str:
    """Returns `1 image`, `3 images`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
