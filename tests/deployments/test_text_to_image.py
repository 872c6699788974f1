"""Every parameter of text-to-image, on a real diffusers pipeline with a tiny model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deployments import special_models
from deployments.pass_memory import PassMemory
from deployments.special_models import special
from deployments.text_to_image import TextToImageReplica
from tests.deployments.conftest import TINY_SD, ObservedReplica, args, pixels, request
from tests.deployments.inputs import Asked


async def test_the_same_seed_gives_the_same_bytes(replica: ObservedReplica) -> None:
    first, second = [(await replica.run(request(seed=5))).result for _ in range(2)]
    assert first.files[0].data == second.files[0].data
    assert first.files[0].media_type == "image/png"


async def test_image_i_is_the_image_of_seed_plus_i(replica: ObservedReplica) -> None:
    together = (await replica.run(request(seed=40, num_images_per_prompt=3))).result
    assert [image.seed for image in together.images] == [40, 41, 42]
    images = pixels(together)
    for seed, image in zip((40, 41, 42), images, strict=True):
        alone = (await replica.run(request(seed=seed))).result
        # Float sums in a batch are ordered differently: one level at most (measured).
        assert abs(image - pixels(alone)[0]).max() <= 1
    assert abs(images[0] - images[1]).max() > 10


async def test_many_images_are_rendered_in_bounded_passes(
    replica: ObservedReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (await replica.run(request(num_images_per_prompt=5))).result
    steps_of_one_pass = replica.steps
    replica.reset()
    monkeypatch.setattr(replica, "_memory", PassMemory(ceiling=2 * 64 * 64))
    passes = (await replica.run(request(num_images_per_prompt=5))).result
    # Once after each step, and once at the end.
    assert replica.steps - 1 == 3 * (steps_of_one_pass - 1)
    assert [image.seed for image in passes.images] == [image.seed for image in whole.images]
    for one, other in zip(pixels(whole), pixels(passes), strict=True):
        assert abs(one - other).max() <= 1


@pytest.mark.parametrize(("width", "height"), [(64, 64), (136, 72), (72, 200)])
async def test_sizes_are_exact(replica: ObservedReplica, width: int, height: int) -> None:
    result = (await replica.run(request(width=width, height=height))).result
    assert pixels(result)[0].shape == (height, width, 3)


async def test_without_a_seed_each_request_gets_its_own(replica: ObservedReplica) -> None:
    results = [
        (await replica.run(request(seed=None, num_images_per_prompt=2))).result for _ in range(2)
    ]
    seeds = [image.seed for result in results for image in result.images]
    assert all(0 <= seed < 2**32 + 1 for seed in seeds)
    assert seeds[1] == seeds[0] + 1
    assert seeds[0] != seeds[2]
    again = (await replica.run(request(seed=seeds[0]))).result
    assert abs(pixels(again)[0] - pixels(results[0])[0]).max() <= 1


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a harbour"},
        {"negative_prompt": "fog"},
        {"guidance_scale": 1.5},
        {"num_inference_steps": 3},
        {"seed": 2},
    ],
)
async def test_every_parameter_counts(replica: ObservedReplica, change: dict[str, Any]) -> None:
    plain = (await replica.run(request())).result
    changed = (await replica.run(request(**change))).result
    assert plain.files[0].data != changed.files[0].data


async def test_the_extremes_of_a_seed_are_served(replica: ObservedReplica) -> None:
    for seed in (-(2**63), 0, 2**63 - 1 - 10):
        result = (await replica.run(request(seed=seed))).result
        assert result.images[0].seed == seed


async def test_turbo_models_run_without_guidance(
    replica: ObservedReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(special_models._BY_ID, TINY_SD, special("stabilityai/sd-turbo"))
    low, high = [(await replica.run(request(guidance_scale=scale))).result for scale in (2, 9)]
    assert low.files[0].data == high.files[0].data


@pytest.mark.parametrize(
    ("takes", "text", "expected"),
    [
        (["prompt"], "a|b", {"prompt": "a|b"}),
        (["prompt", "prompt_2"], "a", {"prompt": "a"}),
        (["prompt", "prompt_2"], " a | b | c", {"prompt": "a", "prompt_2": "b | c"}),
        (["prompt", "prompt_2", "prompt_3"], "a||c", {"prompt": "a", "prompt_2": "c"}),
        (["prompt", "prompt_2"], "|", {}),
        (["prompt", "prompt_2"], " ", {}),
    ],
)
def test_prompts_of_several_encoders(
    replica: ObservedReplica,
    monkeypatch: pytest.MonkeyPatch,
    takes: list[str],
    text: str,
    expected: dict[str, str],
) -> None:
    monkeypatch.setattr(replica, "_takes", frozenset(takes))
    assert replica.split("prompt", text) == expected


async def test_a_blank_negative_prompt_is_none(
    replica: ObservedReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SDXL is trained to be guided away from zeros, which diffusers takes for none only."""
    asked = Asked(replica._pipe)
    monkeypatch.setattr(replica, "_pipe", asked)
    await replica.run(request("|", negative_prompt=" "))
    assert asked["prompt"] == "|"
    assert "negative_prompt" not in asked
    await replica.run(request(negative_prompt="fog"))
    assert asked["negative_prompt"] == "fog"


async def test_what_a_pipeline_does_not_take_is_left_out(
    replica: ObservedReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "_takes", replica._takes - {"negative_prompt"})
    plain = (await replica.run(request())).result
    without = (await replica.run(request(negative_prompt="fog"))).result
    assert without.files[0].data == plain.files[0].data


async def test_a_replica_of_a_directory_without_a_checker_calls_all_images_safe(
    tiny_models_dir: Path, serve_log: pytest.LogCaptureFixture
) -> None:
    replica = TextToImageReplica(args=args(tiny_models_dir))
    warnings = [
        record.getMessage() for record in serve_log.records if record.levelname == "WARNING"
    ]
    assert len(warnings) == 1
    assert "No safety checker" in warnings[0]
    result = (await replica.run(request(safety_check=True))).result
    assert [image.nsfw for image in result.images] == [False]
    replica.close()


async def test_a_decoder_left_in_another_type_is_put_right(replica: ObservedReplica) -> None:
    """As after a request that ran out of memory while diffusers had widened the decoder."""
    plain = (await replica.run(request())).result
    replica._pipe.vae.to(torch.float64)
    again = (await replica.run(request())).result
    assert again.files[0].data == plain.files[0].data


async def test_pixels_vary(replica: ObservedReplica) -> None:
    """The tiny model draws noise, not a flat area that would make these tests empty."""
    image = pixels((await replica.run(request())).result)[0]
    assert np.std(image) > 10
