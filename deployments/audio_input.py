"""Input files to samples: whatever container has sound in it, within bounds, or a clear refusal.

What the reference answers with 415 (not audio) is refused here with a text that says what it is
(ai-runner, runner/src/runner/routes/audio_to_text.py). The schema bounds the file's size.
"""

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.errors import BadRequest, UnsupportedMedia

SAMPLE_RATE_HZ = 16_000
"""What speech models are trained on."""

MAX_DURATION_S = 4 * 3600.0
"""An answer has to be there within ten minutes: a model 24 times faster than speech. Decoded, four
hours are 920 MB; silence of that length can come in a few kilobytes."""

OWN_BYTES_ONLY = {"protocol_whitelist": "none"}
"""Playlists name other files, which could be this machine's or its network's. With no protocol to
open them by, FFmpeg reads what it was given and nothing else."""

NOTHING_HEARD = "audio: the file is not audio that can be read (unsupported or broken)"


def decode_audio(data: bytes, raise_if_cancelled: Callable[[], None]) -> NDArray[np.float32]:
    """Returns the first audio stream of a file: one channel at `SAMPLE_RATE_HZ`, -1 to 1.

    What is readable of a damaged or truncated file is taken.

    Args:
        data: a file in any container and codec that FFmpeg knows, videos among them.
        raise_if_cancelled: called between packets.

    Raises:
        UnsupportedMedia: no audio, or nothing readable.
        BadRequest: too long.
    """
    import av

    pieces: list[NDArray[np.int16]] = []
    try:
        with av.open(io.BytesIO(data), mode="r", options=OWN_BYTES_ONLY) as container:
            if not container.streams.audio:
                raise UnsupportedMedia("audio: the file has no audio stream")
            for piece in _resampled(_frames(container)):
                raise_if_cancelled()
                pieces.append(piece)
    # PyAV's errors are subclasses of these and of ValueError; odd channel layouts raise the last.
    except (av.error.FFmpegError, ValueError) as error:
        if not pieces:
            raise UnsupportedMedia(f"{NOTHING_HEARD}: {error}") from None
    if not pieces:
        raise UnsupportedMedia(f"{NOTHING_HEARD}: no samples in its audio stream")
    # Through 16 bits: FFmpeg's downmix of floats is louder by the square root of two and clips.
    scale = np.float32(1 / 32768)
    return np.concatenate(pieces).astype(np.float32) * scale


def _frames(container: Any) -> Iterator[Any]:
    """The frames of the first audio stream, without the packets that do not decode.

    Raises:
        BadRequest: they are too long. That is seen before a frame is resampled: one of a few
            bytes can last for a day, at a sample a second.
    """
    import av

    duration_us = 0
    for packet in container.demux(container.streams.audio[0]):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            continue
        for frame in frames:
            duration_us += frame.samples * 1_000_000 // max(frame.sample_rate, 1)
            if duration_us > MAX_DURATION_S * 1_000_000:
                raise BadRequest(
                    f"audio: longer than {MAX_DURATION_S / 3600:g} hours, split the file"
                )
            yield frame


def _resampled(frames: Iterator[Any]) -> Iterator[NDArray[np.int16]]:
    """Brings frames to 16 bits, mono and `SAMPLE_RATE_HZ`, even if their kind changes midway."""
    import av

    resampler: Any = None
    kind = None
    for frame in frames:
        if kind != (kind := (frame.format.name, frame.layout.name, frame.sample_rate)):
            yield from _flush(resampler)
            resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE_HZ)
        # A damaged file's time stamps would make it insert silence or refuse.
        frame.pts = None
        for piece in resampler.resample(frame):
            yield piece.to_ndarray()[0]
    yield from _flush(resampler)


def _flush(resampler: Any) -> Iterator[NDArray[np.int16]]:
    """What a resampler still holds."""
    if resampler is not None:
        for piece in resampler.resample(None):
            yield piece.to_ndarray()[0]
