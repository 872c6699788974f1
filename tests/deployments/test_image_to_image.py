"""image-to-image on a tiny Stable Diffusion and a tiny instruct-pix2pix."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments import special_models
from deployments.errors import BadRequest
from deployments.image_to_image import ImageToImageReplica
from deployments.pass_memory import PassMemory
from deployments.schemas.image_to_image import ImageToImageRequest
from deployments.special_models import special
from tests.deployments.conftest import TINY_SD, pixels
from tests.deployments.inputs import (
    Asked,
    load,
    looks,
    outputs,
    photo,
    png,
    steps_after_cancelling,
)

TINY_PIX2PIX = "livepeer-ray/tiny-instruct-pix2pix"


def request(**parameters: Any) -> ImageToImageRequest:
    quick = {"image": png(photo()), "prompt": "a fog", "num_inference_steps": 3, "seed": 1}
    return ImageToImageRequest.parse({**quick, **parameters})


@pytest.fixture(scope="module")
def stable_diffusion(tiny_models_dir: Path) -> Iterator[ImageToImageReplica]:
    replica = load("image-to-image", TINY_SD, tiny_models_dir)
    yield replica
    replica.close()


@pytest.fixture(scope="module")
def pix2pix(tiny_models_dir: Path) -> Iterator[ImageToImageReplica]:
    replica = load("image-to-image", TINY_PIX2PIX, tiny_models_dir)
    yield replica
    replica.close()


def test_defaults_are_the_reference_runners() -> None:
    parsed = ImageToImageRequest.parse({"prompt": "", "image": b"x"})
    assert parsed.model_dump() == {
        "model_id": "",
        "image": b"x",
        "prompt": "",
        "loras": "",
        "strength": 0.8,
        "guidance_scale": 7.5,
        "image_guidance_scale": 1.5,
        "negative_prompt": "",
        "safety_check": True,
        "seed": None,
        "num_inference_steps": 100,
        "num_images_per_prompt": 1,
    }
    assert "x" * 100 not in repr(request(image=b"x" * 100))


@pytest.mark.parametrize(
    "parameters",
    [
        {"image": None},
        {"image": b""},
        {"prompt": None},
        {"strength": 0},
        {"strength": 1.1},
        {"strength": math.nan},
        {"guidance_scale": -1},
        {"image_guidance_scale": -1},
        {"num_inference_steps": 0},
        {"num_inference_steps": 10**9},
        {"num_images_per_prompt": 11},
        {"seed": 2**63},
    ],
)
def test_a_bad_parameter_is_named(parameters: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match=rf"^{next(iter(parameters))}: "):
        request(**parameters)


@pytest.mark.parametrize(
    "change",
    [
        {"image": png(photo(seed=1))},
        {"prompt": "a harbour"},
        {"negative_prompt": "rain"},
        {"guidance_scale": 1.5},
        {"strength": 0.4},
        {"num_inference_steps": 4},
        {"seed": 2},
    ],
)
async def test_every_parameter_counts(
    stable_diffusion: ImageToImageReplica, change: dict[str, Any]
) -> None:
    plain, again, changed = await outputs(stable_diffusion, request(), request(), request(**change))
    assert plain == again
    assert plain != changed


@pytest.mark.parametrize(
    "change",
    [
        {"image": png(photo(seed=1))},
        {"prompt": "a harbour"},
        {"negative_prompt": "rain"},
        {"guidance_scale": 1.5},
        {"image_guidance_scale": 3},
        {"num_inference_steps": 4},
        {"seed": 2},
    ],
)
async def test_every_parameter_counts_for_pix2pix(
    pix2pix: ImageToImageReplica, change: dict[str, Any]
) -> None:
    plain, again, changed = await outputs(pix2pix, request(), request(), request(**change))
    assert plain == again
    assert plain != changed


def test_pix2pix_runs_with_the_references_scheduler(pix2pix: ImageToImageReplica) -> None:
    assert type(pix2pix._pipe).__name__ == "StableDiffusionInstructPix2PixPipeline"
    assert type(pix2pix._pipe.scheduler).__name__ == "EulerAncestralDiscreteScheduler"


@pytest.mark.parametrize("kind", ["stable_diffusion", "pix2pix"])
async def test_image_i_is_the_image_of_seed_plus_i(
    kind: str, fixtures: Callable[[str], ImageToImageReplica], monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = fixtures(kind)
    monkeypatch.setattr(replica, "_memory", PassMemory(ceiling=2 * 64 * 64))
    together = (await replica.run(request(seed=40, num_images_per_prompt=3))).result
    assert [image.seed for image in together.images] == [40, 41, 42]
    images = pixels(together)
    for seed, image in zip((40, 41, 42), images, strict=True):
        alone = (await replica.run(request(seed=seed))).result
        assert abs(image - pixels(alone)[0]).max() <= 1
    assert abs(images[0] - images[1]).max() > 5


@pytest.fixture
def fixtures(
    stable_diffusion: ImageToImageReplica, pix2pix: ImageToImageReplica
) -> Callable[[str], ImageToImageReplica]:
    return {"stable_diffusion": stable_diffusion, "pix2pix": pix2pix}.__getitem__


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        ((64, 64), (64, 64)),
        ((203, 97), (200, 96)),
        ((30, 60), (64, 128)),
        ((3000, 100), (2048, 64)),
    ],
)
async def test_the_answer_has_the_nearest_size_that_the_model_takes(
    fixtures: Callable[[str], ImageToImageReplica],
    sent: tuple[int, int],
    answered: tuple[int, int],
) -> None:
    for kind in ("stable_diffusion", "pix2pix"):
        result = (await fixtures(kind).run(request(image=png(photo(*sent))))).result
        assert pixels(result)[0].shape == (answered[1], answered[0], 3)


async def test_a_strength_that_leaves_no_step_is_refused(
    fixtures: Callable[[str], ImageToImageReplica],
) -> None:
    replica = fixtures("stable_diffusion")
    for steps, strength in ((3, 0.3), (200, 1e-300), (49, 0.02)):
        with pytest.raises(BadRequest, match=r"^strength: .* must be at least 1$"):
            await replica.run(request(strength=strength, num_inference_steps=steps))
    for steps, strength in ((3, 0.34), (49, 1 / 49), (1, 1)):
        asked = request(strength=strength, num_inference_steps=steps)
        assert (await replica.run(asked)).result.images
    # It has no strength.
    assert (await fixtures("pix2pix").run(request(strength=0.01))).result.images


@given(steps=st.integers(1, 200), strength=st.floats(0, 1, exclude_min=True))
def test_whatever_the_strength_there_are_whole_steps_or_a_refusal(
    stable_diffusion: ImageToImageReplica, steps: int, strength: float
) -> None:
    asked = request(num_inference_steps=steps, strength=strength)
    try:
        taken = stable_diffusion._strength(asked) * steps
    except BadRequest:
        assert strength * steps < 1
    else:
        assert taken.denominator == 1
        assert taken >= 1
        assert -1e-3 < strength * steps - taken < 1 + 1e-3


async def test_turbo_models_run_without_guidance_and_with_a_step(
    stable_diffusion: ImageToImageReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(special_models._BY_ID, TINY_SD, special("stabilityai/sd-turbo"))
    asked = Asked(stable_diffusion._pipe)
    monkeypatch.setattr(stable_diffusion, "_pipe", asked)
    for steps in (1, 3, 49):
        await stable_diffusion.run(request(strength=0.01, num_inference_steps=steps))
        assert asked["guidance_scale"] == 0
        assert int(asked["strength"] * steps) == 1


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"hello", "not an image"),
        (png(photo())[:100], "broken"),
        (png(photo(3300, 100)), "too long and thin"),
    ],
    ids=["text", "truncated", "thin"],
)
async def test_an_image_that_cannot_be_used_is_refused_and_the_next_is_served(
    stable_diffusion: ImageToImageReplica, image: bytes, reason: str
) -> None:
    with pytest.raises(BadRequest, match=f"^image: .*{reason}"):
        await stable_diffusion.run(request(image=image))
    assert (await stable_diffusion.run(request())).result.images


async def test_a_lora_that_is_not_there_is_named(stable_diffusion: ImageToImageReplica) -> None:
    with pytest.raises(BadRequest, match=r"^loras: a/b is not available"):
        await stable_diffusion.run(request(loras='{"a/b": 1}'))


async def test_a_cancelled_request_stops_at_its_next_step(
    pix2pix: ImageToImageReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = request(num_inference_steps=100)
    assert await steps_after_cancelling(pix2pix, monkeypatch, long, then=request()) == 1


async def test_the_input_guides_the_answer(stable_diffusion: ImageToImageReplica) -> None:
    """Random weights keep little of it, but a weak change of a dark and a bright image differ."""
    dark, bright = [
        pixels(
            (
                await stable_diffusion.run(
                    request(
                        image=png(photo(seed=seed)), strength=0.1, num_inference_steps=10, seed=1
                    )
                )
            ).result
        )[0]
        for seed in (0, 1)
    ]
    assert abs(dark - bright).max() > 5


def test_cancelling_is_looked_for_after_each_step(pix2pix: ImageToImageReplica) -> None:
    # And once before the images are checked.
    assert looks(pix2pix, request(num_inference_steps=2)) == 2 + 1
