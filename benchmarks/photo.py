"""One picture that compresses as photographs do, made by arithmetic alone.

What a PNG encoder costs depends on what it is given: noise cannot be compressed and flat
colour is over in no time. This is clouds at every scale over gradients, a few hard edges and
a sensor's noise; at Pillow's default level it is 1.8 MB, as photographs of this size are.
With smoother clouds Pillow takes up to twice as long and the reference looks worse.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 1024
"""Pixels."""

OCTAVES = (4, 8, 16, 32, 64, 128, 256, 512)
"""Cells across the picture of each layer of clouds."""

CLOUD_AMPLITUDE, CLOUD_FALLOFF = 60.0, 0.3
"""Grey levels of one cell, and how fast they shrink: amplitude / cells ** falloff."""

SENSOR_NOISE = 2.5
"""Standard deviation in grey levels."""


def photo() -> NDArray[np.uint8]:
    """Returns the picture, 1024 x 1024 x 3; the same at every call."""
    random = np.random.default_rng(1024)
    axis = np.linspace(0, 1, SIDE)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    pixels = np.stack(
        [60 + 110 * x + 40 * y, 150 - 60 * y + 30 * x, 190 - 70 * x - 40 * y], axis=-1
    )
    for cells in OCTAVES:
        grid = random.normal(size=(cells, cells)).astype(np.float32)
        clouds = np.asarray(Image.fromarray(grid).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        amplitude = CLOUD_AMPLITUDE / cells**CLOUD_FALLOFF
        pixels += amplitude * clouds[..., np.newaxis] * (1.0, 0.9, 0.8)
    pixels[(x - 0.65) ** 2 + (y - 0.4) ** 2 < 0.04] *= (1.1, 0.8, 0.6)
    pixels[x + 0.6 * y < 0.5] *= 0.7
    pixels[y > 0.8] *= (0.6, 0.7, 0.6)
    pixels += random.normal(scale=SENSOR_NOISE, size=pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)
