"""The masks of segment-anything-2, drawn over the picture that they belong to."""

import io
import json
from collections.abc import Sequence

COLOURS = ((230, 60, 60), (60, 190, 90), (70, 110, 240))
OPACITY = 0.5


def draw_masks(picture: bytes, masks: str, *, box: Sequence[int]) -> bytes:
    """Returns a PNG of the picture under its masks, each in a colour of its own.

    Args:
        picture: H x W, in any format that Pillow reads.
        masks: the answer's, JSON of C x H x W with more than 0 on the object.
        box: left, top, right, bottom of what was asked for, in pixels.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), dtype=float)
    for number, mask in enumerate(np.array(json.loads(masks))):
        opacity = OPACITY * (mask > 0)[..., np.newaxis]
        pixels = (1 - opacity) * pixels + opacity * COLOURS[number % len(COLOURS)]
    drawn = Image.fromarray(pixels.astype(np.uint8))
    ImageDraw.Draw(drawn).rectangle(tuple(box), outline="white")
    file = io.BytesIO()
    drawn.save(file, "PNG")
    return file.getvalue()
