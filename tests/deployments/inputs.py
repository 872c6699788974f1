"""Input images, and a way to see what a diffusers pipeline is asked for."""

import io
from typing import Any

import numpy as np
from PIL import Image


def photo(width: int = 64, height: int = 64, *, seed: int = 0) -> Image.Image:
    """Returns smooth colours, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


class Asked(dict[str, Any]):
    """Stands before a replica's pipeline and keeps the arguments of its last call."""

    def __init__(self, pipe: Any) -> None:
        super().__init__()
        self._pipe = pipe

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)

    def __call__(self, **arguments: Any) -> Any:
        self.clear()
        self.update(arguments)
        return self._pipe(**arguments)
