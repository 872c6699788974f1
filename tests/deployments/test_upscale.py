"""upscale on a tiny x4 upscaler."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.errors import BadRequest
from deployments.schemas.upscale import UpscaleRequest
from deployments.upscale import UpscaleReplica
from tests.deployments.conftest import pixels
from tests.deployments.inputs import load, looks, outputs, photo, png, steps_after_cancelling


def request(**parameters: Any) -> UpscaleRequest:
    quick = {"image": png(photo()), "prompt": "sharp", "num_inference_steps": 2, "seed": 1}
    return UpscaleRequest.parse({**quick, **parameters})


@pytest.fixture(scope="module")
def upscaler(tiny_models_dir: Path) -> Iterator[UpscaleReplica]:
    replica = load("upscale", "livepeer-ray/tiny-upscaler", tiny_models_dir)
    yield replica
    replica.close()


def test_defaults_are_the_reference_runners() -> None:
    assert UpscaleRequest.parse({"prompt": "", "image": b"x"}).model_dump() == {
        "model_id": "",
        "image": b"x",
        "prompt": "",
        "safety_check": True,
        "seed": None,
        "num_inference_steps": 75,
    }


@pytest.mark.parametrize(
    "parameters",
    [{"image": None}, {"prompt": None}, {"num_inference_steps": 201}, {"seed": 2**63}],
)
def test_a_bad_parameter_is_named(parameters: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match=rf"^{next(iter(parameters))}: "):
        request(**parameters)


@pytest.mark.parametrize("size", [(64, 64), (101, 67), (6, 4), (300, 9)])
async def test_the_answer_is_exactly_four_times_as_large(
    upscaler: UpscaleReplica, size: tuple[int, int]
) -> None:
    result = (await upscaler.run(request(image=png(photo(*size))))).result
    assert [image.seed for image in result.images] == [1]
    assert pixels(result)[0].shape == (4 * size[1], 4 * size[0], 3)
    assert np.std(pixels(result)[0]) > 5


@pytest.mark.parametrize(
    "change",
    [
        {"image": png(photo(seed=1))},
        {"prompt": "blurred"},
        {"num_inference_steps": 3},
        {"seed": 2},
    ],
)
async def test_every_parameter_counts(upscaler: UpscaleReplica, change: dict[str, Any]) -> None:
    plain, again, changed = await outputs(upscaler, request(), request(), request(**change))
    assert plain == again
    assert plain != changed


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (png(photo(513, 512)), "513x512 pixels are too many to enlarge 4 times, at most 262144"),
        (b"hello", "not an image"),
    ],
    ids=["large", "text"],
)
async def test_an_image_that_cannot_be_used_is_refused_and_the_next_is_served(
    upscaler: UpscaleReplica, image: bytes, reason: str
) -> None:
    with pytest.raises(BadRequest, match=f"^image: .*{reason}"):
        await upscaler.run(request(image=image))
    assert (await upscaler.run(request())).result.images


async def test_a_cancelled_request_stops_at_its_next_step(
    upscaler: UpscaleReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = request(num_inference_steps=100)
    assert await steps_after_cancelling(upscaler, monkeypatch, long, then=request()) == 1


def test_cancelling_is_looked_for_after_each_step(upscaler: UpscaleReplica) -> None:
    # And once before the image is checked.
    assert looks(upscaler, request(num_inference_steps=2)) == 2 + 1
