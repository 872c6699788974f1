"""MP4 files: what was put in comes out, to the frame."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from deployments.video import encode_mp4


def colours(count: int, width: int, height: int) -> NDArray[np.uint8]:
    """Returns frames of one colour each."""
    frames = np.empty((count, height, width, 3), dtype=np.uint8)
    for number in range(count):
        frames[number] = (15 * number, 200 - 10 * number, 90)
    return frames


@pytest.mark.parametrize(
    ("count", "width", "height", "fps"), [(14, 136, 72, 7), (1, 64, 64, 1), (3, 1024, 576, 60)]
)
def test_frames_sizes_and_rates_are_exact(count: int, width: int, height: int, fps: int) -> None:
    frames = colours(count, width, height)
    file = encode_mp4(frames, fps=fps)
    assert file.media_type == "video/mp4"
    with av.open(io.BytesIO(file.data), "r") as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.pix_fmt == "yuv420p"
        assert (stream.width, stream.height) == (width, height)
        assert stream.frames == count
        assert stream.average_rate == Fraction(fps)
        assert stream.duration is not None
        assert stream.time_base is not None
        assert stream.duration * stream.time_base * fps == count
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(decoded) == count
    for one, other in zip(frames, decoded, strict=True):
        assert abs(one.astype(int) - other).max() <= 4


def test_a_player_can_begin_at_the_beginning() -> None:
    data = encode_mp4(colours(2, 64, 64), fps=6).data
    assert 0 < data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize(
    "frames",
    [
        colours(0, 64, 64),
        colours(1, 63, 64),
        colours(1, 64, 63),
        colours(1, 64, 64)[0],
        colours(1, 64, 64).astype(np.float32),
    ],
    ids=["none", "odd width", "odd height", "an image", "floats"],
)
def test_what_is_no_video_is_refused(frames: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="a video takes"):
        encode_mp4(frames, fps=6)
