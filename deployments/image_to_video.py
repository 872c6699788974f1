"""image-to-video: Stable Video Diffusion, which sets an image in motion.

How parameters are treated follows ai-runner (runner/src/runner/pipelines/image_to_video.py):
the image is stretched to the video's size, and the model decides how many frames there are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deployments.diffusion import DiffusionReplica, choose_seed
from deployments.image_input import decode_image
from deployments.media import encode_png, to_uint8
from deployments.schemas.image_to_video import (
    FramesRequest,
    FramesResult,
    ImageToVideoRequest,
    VideoResult,
)
from deployments.video import encode_mp4

FRAMES_PER_DECODE = 4
"""As the reference: all 25 frames at once would take the decoder several times the memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """What the model returned: N x H x W x 3 pixels, the seed, and the first frame's flag."""

    frames: NDArray[np.uint8]
    seed: int
    nsfw: bool


class ImageToVideoReplica(DiffusionReplica[ImageToVideoRequest, Clip, VideoResult | FramesResult]):
    """A short video from an image."""

    def factory(self, snapshot: Path) -> Any:  # noqa: ARG002 (the same for all models)
        """Returns the only class there is."""
        from diffusers import StableVideoDiffusionPipeline

        return StableVideoDiffusionPipeline

    def warm_up_request(self) -> ImageToVideoRequest:
        """Returns the usual size on a GPU: one on which that does not fit fails here."""
        grey = encode_png(np.full((64, 64, 3), 128, dtype=np.uint8)).data
        on_cpu = self._pipe.device.type == "cpu"
        width, height = (128, 64) if on_cpu else (1024, 576)
        return ImageToVideoRequest(image=grey, width=width, height=height, num_inference_steps=2)

    def describe(self, request: ImageToVideoRequest) -> str:
        """Returns `1024x576, 25 steps`."""
        return f"{request.width}x{request.height}, {request.num_inference_steps} steps"

    def infer(self, request: ImageToVideoRequest, raise_if_cancelled: Callable[[], None]) -> Clip:
        """Renders all frames.

        Raises:
            BadRequest: the image cannot be read.
        """
        image = decode_image(request.image).resize(
            (request.width, request.height), Image.Resampling.LANCZOS
        )
        seed = choose_seed(request.seed)
        output = self.call(
            {
                "image": image,
                "height": request.height,
                "width": request.width,
                "fps": request.fps,
                "motion_bucket_id": request.motion_bucket_id,
                "noise_aug_strength": request.noise_aug_strength,
                "num_inference_steps": request.num_inference_steps,
                "decode_chunk_size": FRAMES_PER_DECODE,
                "generator": self.generators([seed]),
            },
            raise_if_cancelled,
        )
        frames = to_uint8(output.frames[0])
        (nsfw,) = self.flags(frames[:1], wanted=request.safety_check)
        return Clip(frames=frames, seed=seed, nsfw=nsfw)

    def encode(self, request: ImageToVideoRequest, raw: Clip) -> VideoResult | FramesResult:
        """Encodes the frames as MP4, or each as PNG for who wants them so."""
        if isinstance(request, FramesRequest):
            frames = tuple(encode_png(pixels) for pixels in raw.frames)
            return FramesResult(frames=frames, seed=raw.seed, nsfw=raw.nsfw)
        video = encode_mp4(raw.frames, fps=request.fps)
        return VideoResult(video=video, seed=raw.seed, nsfw=raw.nsfw)
