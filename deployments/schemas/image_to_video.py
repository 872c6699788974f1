"""image-to-video: the ten parameters of the runner API, bounded, and its result.

Names and defaults are ai-runner's (runner/src/runner/routes/image_to_video.py). Where no fps is
sent, the Go worker lets the model compute for 6 and then encodes for 7 (go-livepeer,
core/ai_orchestrator.go, ImageToVideo): things move faster than the model meant. Here 6 is both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from deployments.schemas.base import MediaFile, Request, Result
from deployments.schemas.images import InputFile, Seed, Side

MAX_PIXELS = 1024 * 1024
"""Of a frame. The model computes 14 or 25 of them at once, and was trained on 1024x576."""

MAX_STEPS = 100
"""Denoising steps. Each is 14 or 25 images' work, and 25 are usual: with 100 a data-centre GPU
is near the ten minutes after which nobody waits for a result any more."""

MAX_FPS = 60
"""Frames per second. The model was trained on up to 30; screens show 60."""

MAX_MOTION = 1023
"""The model was trained on up to 255. More is more motion, then flicker."""

MAX_NOISE = 10.0
"""Pixels go from -1 to 1: ten times as much noise leaves nothing of the image."""


class ImageToVideoRequest(Request):
    """Set an image in motion."""

    image: InputFile
    height: Side = 576
    width: Side = 1024
    fps: Annotated[int, Field(ge=1, le=MAX_FPS)] = 6
    motion_bucket_id: Annotated[int, Field(ge=0, le=MAX_MOTION)] = 127
    noise_aug_strength: Annotated[float, Field(ge=0, le=MAX_NOISE)] = 0.02
    safety_check: bool = True
    seed: Seed | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 25

    @model_validator(mode="after")
    def _frames_are_bounded(self) -> Self:
        if self.width * self.height > MAX_PIXELS:
            raise ValueError(
                f"width and height: {self.width}x{self.height} pixels a frame are too many, "
                f"at most {MAX_PIXELS}"
            )
        return self

    def for_http(self) -> "FramesRequest":
        """Returns the same, answered with frames."""
        return FramesRequest.model_validate(dict(self))


class FramesRequest(ImageToVideoRequest):
    """Set an image in motion and answer with the frames, as the runner's HTTP API does.

    The transport's wish, which no parameter can express: all frames pass through
    `ImageToVideoReplica.encode`, where it decides which of the two encoders runs. Nothing is
    rendered twice, nor encoded in both ways, nor decoded from the MP4.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoResult(Result):
    """One video, as the network wants it: a single MP4 file."""

    video: MediaFile
    seed: int
    nsfw: bool
    """Whether the first frame may be offensive."""

    @property
    def files(self) -> Sequence[MediaFile]:
        """The one file."""
        return [self.video]

    def document(self, urls: Sequence[str]) -> dict[str, Any]:
        """Returns ai-runner's ImageResponse with the video in the image's place.

        That is what the Go worker sends (go-livepeer, core/ai_orchestrator.go, ImageToVideo).
        """
        (url,) = urls
        return {"images": [{"url": url, "seed": self.seed, "nsfw": self.nsfw}]}


@dataclass(frozen=True, slots=True, kw_only=True)
class FramesResult(Result):
    """One video, as the runner's HTTP API wants it: each frame a PNG."""

    frames: tuple[MediaFile, ...]
    seed: int
    nsfw: bool
    """As in `VideoResult`."""

    @property
    def files(self) -> Sequence[MediaFile]:
        """One file a frame."""
        return self.frames

    def document(self, urls: Sequence[str]) -> dict[str, Any]:
        """Returns ai-runner's VideoResponse."""
        return {"frames": [[{"url": url, "seed": self.seed, "nsfw": self.nsfw} for url in urls]]}
