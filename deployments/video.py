"""Frames to an MP4 file, in the replica: H.264, which every browser plays."""

import tempfile
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from numpy.typing import NDArray

from deployments.schemas.base import MediaFile

BIT_RATE = 6_000_000
"""Bits per second, as the Go worker encodes (go-livepeer, core/ai_orchestrator.go)."""


def encode_mp4(frames: NDArray[np.uint8], *, fps: int) -> MediaFile:
    """Encodes frames, each shown for 1 / fps seconds.

    The index stands before the pictures, so that a player can begin before it has the file's
    end. PyAV writes it there only if it can read the file again: hence one on disk for a moment.

    Args:
        frames: N x H x W x 3, RGB, with even sides: H.264 stores colours at half of them.
        fps: frames per second.

    Raises:
        ValueError: there are no frames, they are no RGB, or a side is odd.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise ValueError(f"a video takes uint8 NxHxWx3, not {frames.dtype} {frames.shape}")
    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise ValueError(f"a video takes even sides, not {width}x{height}")
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "video.mp4"
        with av.open(str(file), "w", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream("libx264", rate=fps)
            stream.width, stream.height = width, height
            stream.pix_fmt = "yuv420p"
            stream.bit_rate = BIT_RATE
            # Said explicitly: players otherwise guess by the size, and colours shift.
            context = stream.codec_context
            context.colorspace = Colorspace.ITU709
            context.color_range = ColorRange.MPEG
            context.color_primaries = ColorPrimaries.BT709
            context.color_trc = ColorTrc.BT709
            for pixels in frames:
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                    format="yuv420p",
                    dst_colorspace=Colorspace.ITU709,
                    dst_color_range=ColorRange.MPEG,
                )
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return MediaFile(data=file.read_bytes(), media_type="video/mp4")
