"""Pixels to files: each image is converted and encoded once, in the replica."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deployments.png import png_bytes
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
        ValueError: when the array has another shape or type, or is empty.
    """
    return MediaFile(data=png_bytes(pixels), media_type="image/png")
