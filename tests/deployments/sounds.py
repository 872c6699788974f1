"""Sound files that tests make."""

import io
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray


def tone(seconds: float, rate_hz: int = 16_000, channels: int = 1) -> NDArray[np.int16]:
    """A voice-like sweep, channels x samples, at half of full scale."""
    time = np.arange(int(seconds * rate_hz)) / rate_hz
    wave = np.sin(2 * np.pi * (200 + 40 * np.sin(3 * time)) * time) * 16_384
    return np.repeat(wave.astype(np.int16)[None], channels, axis=0)


def sound_file(
    samples: NDArray[np.int16],
    rate_hz: int = 16_000,
    kind: str = "wav",
    codec: str = "pcm_s16le",
    *,
    video: bool = False,
) -> bytes:
    """Returns samples (channels x samples) in a container, after a second of video if wanted."""
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(samples)]
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        picture: Any = container.add_stream("mpeg4", rate=5) if video else None
        sound: Any = container.add_stream(codec, rate=rate_hz, layout=layout)
        if picture is not None:
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuv420p"
            for _ in range(5):
                grey = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 99, np.uint8))
                container.mux(picture.encode(grey))
            container.mux(picture.encode(None))
        interleaved = np.ascontiguousarray(samples.T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(interleaved, format="s16", layout=layout)
        frame.sample_rate = rate_hz
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return file.getvalue()


def silent_film() -> bytes:
    """A video without a sound track."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()
