"""Samples to a sound file, once, in the replica."""

import io
import wave

import numpy as np
from numpy.typing import NDArray

from deployments.schemas.base import MediaFile


def encode_wav(samples: NDArray[np.float32], rate_hz: int) -> MediaFile:
    """Encodes one channel as WAV, 16-bit PCM.

    Args:
        samples: N, -1 to 1; what is outside is clipped, and what is no number is silence.
        rate_hz: samples a second.
    """
    finite = np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0)
    pcm = np.round(np.clip(finite, -1, 1) * 32767).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(rate_hz)
        wav.writeframes(pcm.tobytes())
    return MediaFile(data=file.getvalue(), media_type="audio/wav")
