"""PNG files decode to exactly the pixels that went in, whichever encoder wrote them."""

import io
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from deployments.media import encode_png, to_uint8
from deployments.png import pillow_png_bytes

IMAGES = arrays(
    np.uint8,
    st.tuples(st.integers(1, 33), st.integers(1, 33), st.sampled_from([3, 4])),
    elements=st.integers(0, 255),
)


def fast(image: NDArray[np.uint8]) -> bytes:
    return encode_png(image).data


@pytest.mark.parametrize("encode", [fast, pillow_png_bytes])
@given(image=IMAGES)
def test_nothing_is_lost(
    encode: Callable[[NDArray[np.uint8]], bytes], image: NDArray[np.uint8]
) -> None:
    decoded = np.asarray(Image.open(io.BytesIO(encode(image))))
    np.testing.assert_array_equal(decoded, image)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 2048, 3), (2048, 1, 4), (1023, 517, 3)])
def test_odd_sizes_of_real_images(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(fast(image)))), image)


def test_an_array_that_is_not_contiguous() -> None:
    image = np.arange(8 * 8 * 4, dtype=np.uint8).reshape(8, 8, 4)[::2, ::-1, :3]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(fast(image)))), image)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 1), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(array: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="PNG"):
        encode_png(array)


def test_pillow_stands_in_where_isal_is_missing() -> None:
    code = (
        "import sys; sys.modules['isal'] = None\n"
        "import io, numpy as np; from PIL import Image\n"
        "from deployments import media, png\n"
        "assert png.isal_zlib is None\n"
        "image = np.full((3, 5, 3), 77, np.uint8)\n"
        "assert (np.asarray(Image.open(io.BytesIO(media.encode_png(image).data))) == image).all()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_pixels_are_rounded_and_clamped(dtype: torch.dtype) -> None:
    levels = torch.tensor([-0.5, 0.0, 0.25, 1.0, 1.5], dtype=dtype)
    out = to_uint8(levels.view(1, 1, 1, 5).expand(1, 3, 1, 5))
    assert out.shape == (1, 1, 5, 3)
    assert out.flags.c_contiguous
    assert out[0, 0, :, 0].tolist() == [0, 0, 64, 255, 255]


def test_channels_and_rows_keep_their_places() -> None:
    images = torch.zeros(2, 3, 4, 5)
    images[1, 2, 3, 0] = 1.0
    out = to_uint8(images)
    assert out.shape == (2, 4, 5, 3)
    assert np.argwhere(out).tolist() == [[1, 3, 0, 2]]
