"""Input images at the sizes that models take."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deployments.errors import BadRequest
from deployments.image_size import fit, pad
from tests.deployments.inputs import photo


@pytest.mark.parametrize(
    ("given_size", "multiple", "fitted"),
    [
        ((512, 512), 8, (512, 512)),
        ((519, 513), 8, (512, 512)),
        ((4000, 3000), 8, (2048, 1536)),
        ((3000, 4000), 16, (1536, 2048)),
        ((10, 10), 8, (64, 64)),
        ((1, 2), 16, (64, 128)),
        ((2048, 64), 8, (2048, 64)),
    ],
)
def test_fit(given_size: tuple[int, int], multiple: int, fitted: tuple[int, int]) -> None:
    image = fit(Image.new("RGB", given_size), multiple=multiple, min_side=64, max_side=2048)
    assert image.size == fitted


def test_too_thin() -> None:
    with pytest.raises(BadRequest, match=r"^image: 66x2 .* at most 32 times the other$"):
        fit(Image.new("RGB", (66, 2)), multiple=8, min_side=64, max_side=2048)


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([8, 16]))
def test_whatever_fits_is_within_the_bounds(width: int, height: int, multiple: int) -> None:
    try:
        image = fit(Image.new("1", (width, height)), multiple=multiple, min_side=64, max_side=2048)
    except BadRequest:
        assert max(width, height) > 32 * min(width, height)
        return
    assert all(64 <= side <= 2048 and side % multiple == 0 for side in image.size)


@pytest.mark.parametrize(
    ("size", "padded"), [((64, 64), (64, 64)), ((65, 70), (72, 72)), ((1, 3), (64, 64))]
)
def test_pad(size: tuple[int, int], padded: tuple[int, int]) -> None:
    image = photo(*size)
    wider = pad(image, multiple=8, min_side=64)
    assert wider.size == padded
    assert np.array_equal(np.asarray(wider)[: size[1], : size[0]], np.asarray(image))
    assert wider.getpixel((padded[0] - 1, padded[1] - 1)) == image.getpixel(
        (size[0] - 1, size[1] - 1)
    )
