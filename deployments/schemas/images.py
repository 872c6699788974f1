"""The result of every pipeline that answers with images, and the parameters they share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from deployments.schemas.base import MediaFile, Result

MAX_IMAGES = 10
"""Images a request. The orchestrator's store keeps 12 files a request and the input is one of
them (go-livepeer, drivers/local.go): 11 at most, and one is left in reserve."""

SIDE_MULTIPLE = 8
"""Sides must be whole latents: every diffusers VAE that is served here shrinks by 8."""

MIN_SIDE = 64
"""Pixels. Below 8 latents the UNets' down blocks run out of pixels to halve."""

MAX_SIDE = 2048
"""Pixels. Four times the area that SDXL is made for; assumed to be about what its VAE can decode
in one piece on a 24 GB card, where nothing was run yet."""

MAX_STEPS = 200
"""Denoising steps. The slowest schedulers converge well before; more only occupies the GPU."""

MIN_SEED, MAX_SEED = -(2**63), 2**63 - 1 - MAX_IMAGES
"""The answer's seeds are Go int64 and count up from the request's, one an image."""

MAX_PROMPT_CHARS = 10_000
"""Text encoders read at most 77 (CLIP) or 512 (T5) tokens; the tokenizer still reads it all."""

MAX_LORAS_CHARS = 2_000
"""A JSON object of a few repository ids and weights."""

MAX_GUIDANCE = 100.0
"""Guidance multiplies latents; far beyond this float16 overflows to black images."""

MAX_FILE_BYTES = 100_000_000
"""Of an input image: a photograph of the largest size that is decoded, stored without loss. It is
in memory several times on its way to the replica."""

Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]
Loras = Annotated[str, Field(max_length=MAX_LORAS_CHARS)]
Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE, multiple_of=SIDE_MULTIPLE)]
Guidance = Annotated[float, Field(ge=0, le=MAX_GUIDANCE)]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Seed = Annotated[int, Field(ge=MIN_SEED, le=MAX_SEED)]
Count = Annotated[int, Field(ge=1, le=MAX_IMAGES)]
InputFile = Annotated[bytes, Field(min_length=1, max_length=MAX_FILE_BYTES, repr=False)]
"""The input file, which the bridge fetched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One encoded image."""

    file: MediaFile
    seed: int
    nsfw: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesResult(Result):
    """Images in the order of their seeds."""

    images: tuple[Image, ...]

    @property
    def files(self) -> Sequence[MediaFile]:
        """One file an image."""
        return [image.file for image in self.images]

    def document(self, urls: Sequence[str]) -> dict[str, Any]:
        """Returns ai-runner's ImageResponse."""
        return {
            "images": [
                {"url": url, "seed": image.seed, "nsfw": image.nsfw}
                for url, image in zip(urls, self.images, strict=True)
            ]
        }
