"""Input images at the sizes that models take."""

import numpy as np
from PIL import Image

from deployments.errors import BadRequest


def fit(image: Image.Image, *, multiple: int, min_side: int, max_side: int) -> Image.Image:
    """Resizes an image as little as possible to sides that a model takes.

    It is shrunk if it is too large and enlarged if it is too small; its proportions change
    only by what the multiple demands.

    Args:
        image: of any size.
        multiple: what both sides must be multiples of, in pixels.
        min_side: the least a side may have, in pixels; a multiple of `multiple`.
        max_side: the most a side may have, in pixels; a multiple of `multiple`.

    Raises:
        BadRequest: the image is too long and thin to be both.
    """
    longest, shortest = max(image.size), min(image.size)
    scale = max(min(1.0, max_side / longest), min_side / shortest)
    if longest * scale > max_side:
        raise BadRequest(
            f"image: {image.width}x{image.height} pixels are too long and thin, one side may be "
            f"at most {max_side // min_side} times the other"
        )
    width, height = (
        # Rounded first: 2048 / 3000 * 3000 is a little less than 2048.
        max(min_side, round(side * scale) // multiple * multiple)
        for side in image.size
    )
    return image if image.size == (width, height) else image.resize((width, height), _FILTER)


def pad(image: Image.Image, *, multiple: int, min_side: int) -> Image.Image:
    """Repeats the right column and the lower row up to sides that a model takes.

    What is computed from the padding can be cropped away, so sizes stay exact.

    Args:
        image: RGB, of any size.
        multiple: what both sides are to be multiples of, in pixels.
        min_side: the least a side may have, in pixels; a multiple of `multiple`.
    """
    width, height = (max(min_side, -(-side // multiple) * multiple) for side in image.size)
    missing = ((0, height - image.height), (0, width - image.width), (0, 0))
    return Image.fromarray(np.pad(np.asarray(image), missing, mode="edge"))


_FILTER = Image.Resampling.LANCZOS
