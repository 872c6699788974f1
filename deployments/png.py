"""PNG files, losslessly and ten times faster than Pillow writes them.

Pillow tries five filters on every row and compresses with zlib. Here every row is filtered
against the one above it, which numpy does in a millisecond, and compressed by ISA-L: on a
photo-like 1024x1024 image 20 ms against 196 ms for Pillow's level 1 and 464 ms for its
default, and the file is smaller than level 1's (one core of the machine in the README).
Both steps release the GIL. The format: https://www.w3.org/TR/png-3/.
"""

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

try:
    from isal import isal_zlib
except ImportError:  # no wheel for this processor: Pillow stands in
    isal_zlib = None  # type: ignore[assignment]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOR_TYPES = {3: 2, 4: 6}
"""Channels to PNG's colour type: RGB, RGBA."""

FILTER_UP = 2
"""Each byte less the one above it; the row above the first is zero."""

LEVEL = 1
"""Of 0 to 3: beyond 1 it takes longer and gains a few per cent."""


def png_bytes(pixels: NDArray[np.uint8]) -> bytes:
    """Encodes H x W x 3 (RGB) or H x W x 4 (RGBA).

    Raises:
        ValueError: when the array has another shape or type, or is empty.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in COLOR_TYPES:
        raise ValueError(f"a PNG takes uint8 HxWx3 or HxWx4, not {pixels.dtype} {pixels.shape}")
    if pixels.size == 0:
        raise ValueError(f"a PNG cannot be empty: {pixels.shape}")
    if isal_zlib is None:
        return pillow_png_bytes(pixels)
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, COLOR_TYPES[channels], 0, 0, 0)
    return b"".join(
        [
            SIGNATURE,
            *_chunk(b"IHDR", header),
            *_chunk(b"IDAT", isal_zlib.compress(_filtered(pixels), LEVEL)),
            *_chunk(b"IEND", b""),
        ]
    )


def pillow_png_bytes(pixels: NDArray[np.uint8]) -> bytes:
    """The same image as Pillow writes it, at its fastest level."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=1)
    return file.getvalue()


def _filtered(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The rows as PNG compresses them: a filter's number, then the filtered bytes."""
    height, width, channels = pixels.shape
    rows = pixels.reshape(height, width * channels)
    filtered = np.empty((height, 1 + width * channels), dtype=np.uint8)
    filtered[:, 0] = FILTER_UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    return filtered


def _chunk(kind: bytes, data: bytes) -> tuple[bytes, ...]:
    checksum = zlib.crc32(data, zlib.crc32(kind))
    return struct.pack(">I", len(data)), kind, data, struct.pack(">I", checksum)
