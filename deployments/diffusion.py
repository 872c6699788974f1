"""What all diffusers pipelines share: loading, cancelling, seeds, passes, safety.

`DiffusionReplica` runs any diffusers pipeline. `ImagesReplica` adds what those have in common
that answer with images; `deployments.prompted` has what text-to-image and image-to-image share.
"""

import inspect
import itertools
import secrets
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from deployments.assembly import find_files, load_pipeline
from deployments.batching import Share
from deployments.media import encode_png, to_uint8
from deployments.optimizations import Optimizations
from deployments.pass_memory import for_this_device
from deployments.replica import RawT, Replica, RequestT, ResultT
from deployments.safety import SafetyChecker
from deployments.schemas.images import Image, ImagesResult

OF_AN_IMAGE = {
    *("prompt", "negative_prompt", "image", "seed"),
    *("num_images_per_prompt", "safety_check", "model_id"),
}
"""The parameters in which requests that are rendered together may differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """What the pipeline is to draw for one request."""

    arguments: Mapping[str, Any]
    """Of the pipeline, equal for all images of a pass."""
    prompts: Mapping[str, str]
    """Arguments of the pipeline that each image of a pass may have its own of."""
    seeds: Sequence[int]
    """One an image."""
    size: tuple[int, int]
    """Width and height of each image in pixels; more than that is cropped."""
    image: PIL.Image.Image | None = None
    """What each image starts from, for pipelines that take one."""
    safety_check: bool

    def shares_pass_with(self, other: "Drawing") -> bool:
        """Whether the images of both can be drawn at once."""
        return (
            self.arguments == other.arguments
            and self.prompts.keys() == other.prompts.keys()
            and self.size == other.size
            and (self.image and self.image.size) == (other.image and other.image.size)
        )


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

    def load(self, snapshot: Path) -> None:
        """Loads the pipeline and, if it is there, the safety checker."""
        files = find_files(self.args.model_id, self.args.models_dir)
        self._pipe: Any = load_pipeline(self.factory(snapshot), files)
        # Most pipelines decode with one; the few others go without what is done for it.
        self._vae: Any = getattr(self._pipe, "vae", None)
        self._vae_dtype = None if self._vae is None else self._vae.dtype
        self._takes = frozenset(inspect.signature(self._pipe.__call__).parameters)
        self._safety = SafetyChecker.load(self.args.models_dir)
        self._optimizations = Optimizations(pipe=self._pipe, args=self.args)

    def warm_up(self, request: RequestT) -> None:
        """Runs a request, and the compiler if the model is to be compiled."""
        requests = [request]
        if self.args.sfast and "num_images_per_prompt" in type(request).model_fields:
            # A batch of one is compiled apart from all others.
            requests.append(request.model_copy(update={"num_images_per_prompt": 2}))

        def run() -> None:
            for each in requests:
                super(DiffusionReplica, self).warm_up(each)

        self._optimizations.warm_up(run)

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
        taken = {name: wanted[name] for name in wanted if name in self._takes}
        steps = int(arguments["num_inference_steps"] * taken.get("strength", 1))
        with self._optimizations.applied(steps=steps):
            if self._vae is not None:
                # Pipelines widen float16 decoders for a while; one that failed then left it wide.
                self._vae.to(self._vae_dtype)
            return self._pipe(**taken)

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
        self._memory = for_this_device()

    @abstractmethod
    def drawing(self, request: RequestT) -> Drawing:
        """Returns what to draw for a request.

        Raises:
            BadRequest: nobody could serve this request.
        """

    def share_of(self, request: RequestT, *, size: tuple[int, int], images: int = 1) -> Share:
        """Returns the terms of a request: all must agree but what each image may have its own of.

        Args:
            request: what is asked for.
            size: width and height of each image in pixels.
            images: how many are asked for.
        """
        agreed = request.model_dump(exclude=OF_AN_IMAGE)
        return Share(
            kind=(size, *agreed.items()),
            size=size[0] * size[1] * images,
            limit=self._memory.max_pixels,
        )

    def infer(self, request: RequestT, raise_if_cancelled: Callable[[], None]) -> Rendered:
        """Renders all images of the request.

        Raises:
            BadRequest: nobody could serve this request.
        """
        (rendered,) = self.infer_together([request], raise_if_cancelled)
        return rendered

    def infer_together(
        self, requests: Sequence[RequestT], raise_if_cancelled: Callable[[], None]
    ) -> Sequence[Rendered]:
        """Renders all images of all requests, in as few passes as memory allows."""
        drawings = [self.drawing(request) for request in requests]
        wanted = [(drawing, seed) for drawing in drawings for seed in drawing.seeds]
        images: list[NDArray[np.uint8]] = []
        while len(images) < len(wanted):
            images.extend(self._pass(self._alike(wanted[len(images) :]), raise_if_cancelled))
        raise_if_cancelled()
        return [
            Rendered(
                pixels=pixels,
                seeds=drawing.seeds,
                nsfw=self.flags(pixels, wanted=drawing.safety_check),
            )
            for drawing, pixels in zip(drawings, _split(images, drawings), strict=True)
        ]

    def _alike(self, wanted: Sequence[tuple[Drawing, int]]) -> Sequence[tuple[Drawing, int]]:
        """Returns the first images of these, as many as one pass may draw."""
        first = wanted[0][0]
        most = max(1, self._memory.max_pixels // (first.size[0] * first.size[1]))
        return list(
            itertools.takewhile(lambda image: first.shares_pass_with(image[0]), wanted[:most])
        )

    def _pass(
        self, images: Sequence[tuple[Drawing, int]], raise_if_cancelled: Callable[[], None]
    ) -> NDArray[np.uint8]:
        """Returns N x H x W x 3 pixels, an image for each drawing and seed."""
        drawings = [drawing for drawing, _seed in images]
        first = drawings[0]
        width, height = first.size
        arguments = {
            **first.arguments,
            "generator": self.generators([seed for _drawing, seed in images]),
        }
        if all(drawing is first for drawing in drawings):
            # The text is encoded once for all.
            arguments |= {**first.prompts, "num_images_per_prompt": len(images)}
        else:
            arguments |= {
                name: [drawing.prompts[name] for drawing in drawings] for name in first.prompts
            }
        if first.image is not None:
            # Given once, some pipelines encode it with the first generator only, for all.
            arguments["image"] = [drawing.image for drawing in drawings]
        with self._memory.measured(pixels=len(images) * width * height):
            output = self.call(arguments, raise_if_cancelled)
            return to_uint8(output.images)[:, :height, :width]

    def encode(self, request: RequestT, raw: Rendered) -> ImagesResult:  # noqa: ARG002 (the contract of all replicas)
        """Encodes each image as PNG."""
        return ImagesResult(
            images=tuple(
                Image(file=encode_png(pixels), seed=seed, nsfw=nsfw)
                for pixels, seed, nsfw in zip(raw.pixels, raw.seeds, raw.nsfw, strict=True)
            )
        )


def _split(
    images: Sequence[NDArray[np.uint8]], drawings: Sequence[Drawing]
) -> Iterator[NDArray[np.uint8]]:
    """Yields the images of each drawing."""
    remaining = iter(images)
    for drawing in drawings:
        yield np.stack([next(remaining) for _seed in drawing.seeds])


def choose_seed(seed: int | None) -> int:
    """Returns the request's seed, or a random one of 32 bits."""
    return secrets.randbelow(2**32) if seed is None else seed
