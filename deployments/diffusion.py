"""What all diffusers pipelines share: loading, cancelling, seeds, passes, safety.

`DiffusionReplica` runs any diffusers pipeline. `ImagesReplica` adds what those have in common
that answer with images; `deployments.prompted` has what text-to-image and image-to-image share.
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

from deployments.assembly import find_files, load_pipeline
from deployments.media import encode_png, to_uint8
from deployments.replica import RawT, Replica, RequestT, ResultT
from deployments.safety import SafetyChecker
from deployments.schemas.images import Image, ImagesResult

MAX_PIXELS_PER_PASS = 2 * 1024 * 1024
"""Images of one request share a pass up to this many pixels. Two of 1024x1024, four with
guidance, keep a large GPU busy; more would take memory in proportion and gain little."""


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

    def find(self) -> Path:
        """Returns the directory with the pipeline's files; those of other repositories are there.

        Raises:
            ModelNotFound: with the command that downloads what is missing.
        """
        return find_files(self.args.model_id, self.args.models_dir).pipeline

    def weights(self, snapshot: Path) -> Sequence[Path]:  # noqa: ARG002 (of several directories)
        """Returns the weights of all repositories that the model is made of."""
        return find_files(self.args.model_id, self.args.models_dir).weights()

    def load(self, snapshot: Path) -> None:
        """Loads the pipeline and, if it is there, the safety checker."""
        files = find_files(self.args.model_id, self.args.models_dir)
        factory = self.factory(snapshot)
        self.imported()
        self._pipe: Any = load_pipeline(factory, files, self.start_up)
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
        """Loads the pipeline."""
        super().load(snapshot)
        # One image at a time through the decoder, which needs the most memory of all parts.
        if hasattr(self._vae, "enable_slicing"):
            self._vae.enable_slicing()

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


def choose_seed(seed: int | None) -> int:
    """Returns the request's seed, or a random one of 32 bits."""
    return secrets.randbelow(2**32) if seed is None else seed
