"""Pixels to files: each image is converted and encoded once, in the replica.

PNG is written by fpng, which is lossless and about twenty times faster than Pillow's zlib on
a photo of 1024x1024 pixels. Pillow stands in where fpng cannot run.
"""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deployments.schemas.base import MediaFile

if TYPE_CHECKING:
    import torch


def to_uint8(images: "torch.Tensor") -> NDArray[np.uint8]:
    """Returns pixels as N x H x W x 3 of 0 to 255, copied to the host.

    Args:
        images: N x 3 x H x W of any float type, 0 to 1, on any device.
    """
    # Rounded in float32 whatever the model's type, as diffusers does on its way to PIL.
    scaled = images.float().mul(255).round().clamp(0, 255).byte()
    pixels: NDArray[np.uint8] = scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return pixels


def encode_png(pixels: NDArray[np.uint8]) -> MediaFile:
    """Encodes one image, H x W x 3 (RGB) or H x W x 4 (RGBA).

    Raises:
        ValueError: when the array has another shape or type. fpng does not check and would
            read beyond its end.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        raise ValueError(f"a PNG takes uint8 HxWx3 or HxWx4, not {pixels.dtype} {pixels.shape}")
    if pixels.size == 0:
        raise ValueError(f"a PNG cannot be empty: {pixels.shape}")
    return MediaFile(data=_png_bytes(pixels), media_type="image/png")


def encode_png_with_pillow(pixels: NDArray[np.uint8]) -> bytes:
    """Returns the PNG file as Pillow writes it, at its fastest level."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=1)
    return file.getvalue()


def _png_encoder() -> Callable[[NDArray[np.uint8]], bytes]:
    """Returns fpng, or Pillow where fpng is missing or the CPU is older than SSE 4.1.

    fpng-py's whole extension is compiled with SSE 4.1 on x86, and not at all elsewhere.
    """
    try:
        import fpng_py
    except ImportError:
        return encode_png_with_pillow
    if not fpng_py.fpng_cpu_supports_sse41():
        return encode_png_with_pillow
    encode: Any = fpng_py.fpng_encode_image_to_memory

    def with_fpng(pixels: NDArray[np.uint8]) -> bytes:
        height, width, channels = pixels.shape
        file: bytes = encode(pixels.tobytes(), width, height, channels)
        return file

    return with_fpng


_png_bytes = _png_encoder()
