"""What is sent, and what the network divides its seconds by."""

from typing import Any

import pytest

from cluster.bench.workload import SAMPLES, Workload
from cluster.demo.inputs import sound
from cluster.errors import ConfigError
from deployments.registry import PIPELINES

LIGHTNING = "ByteDance/SDXL-Lightning-4step"


def workload(pipeline: str, model_id: str = "org/name", **options: Any) -> Workload:
    given = {"parameters": {}, "file": None, "batch": 1, **options}
    return Workload(pipeline=pipeline, model_id=model_id, **given)


@pytest.mark.parametrize(
    ("pipeline", "parameters", "batch", "units", "scored"),
    [
        # go-livepeer, server/ai_process.go; steps are its defaults where there are none.
        ("text-to-image", {}, 1, 1, 1024 * 1024 * 50),
        ("text-to-image", {"width": 512, "height": 256}, 4, 4, 512 * 256 * 4 * 50),
        ("image-to-image", {"num_inference_steps": 10}, 2, 2, 512 * 512 * 2 * 10),
        ("image-to-video", {}, 1, 1, 1024 * 576 * 25 * 25),
        ("upscale", {}, 1, 1, 128 * 128 * 75),
        ("segment-anything-2", {}, 1, 1, 512 * 512),
        ("image-to-text", {}, 1, 1, 512 * 512),
        ("audio-to-text", {}, 1, 2.0, 2.0),
        ("text-to-speech", {"text": "twelve chars"}, 1, 12, 12),
        ("llm", {}, 1, 0, 0),
    ],
)
def test_work(
    pipeline: str, parameters: dict[str, Any], batch: int, units: float, scored: float
) -> None:
    work = workload(pipeline, parameters=parameters, batch=batch).work
    assert work.units == pytest.approx(units)
    assert work.scored == pytest.approx(scored)


def test_lightning_is_scored_by_the_steps_of_its_id() -> None:
    assert workload("text-to-image", LIGHTNING).work.scored == 1024 * 1024 * 4


def test_every_pipeline_has_a_sample_and_no_request_is_sent_twice() -> None:
    assert SAMPLES.keys() == PIPELINES.keys()
    kept = {"audio-to-text", "text-to-speech"}  # keep nothing between requests
    for pipeline in SAMPLES:
        one, two = workload(pipeline).request(1), workload(pipeline).request(2)
        assert (one == two) == (pipeline in kept), pipeline


def test_a_file_takes_the_place_of_the_made_one() -> None:
    twice = sound() + b"\x00"
    request: Any = workload("audio-to-text", file=twice).request(0)
    assert request.audio == twice


@pytest.mark.parametrize(
    ("pipeline", "options", "message"),
    [
        ("upscale", {"batch": 2}, "--batch: a request to upscale cannot ask for several images"),
        ("llm", {"file": b"x"}, "--input: llm takes no file"),
        ("upscale", {"parameters": {"steps": 4}}, "--request: upscale has no 'steps'; it has "),
        ("upscale", {"file": b"x"}, "--request, --input: "),
        ("text-to-image", {"batch": 11}, "num_images_per_prompt: "),
        ("text-to-image", {"parameters": {"width": 7}}, "--request, --input: width: "),
    ],
)
def test_what_makes_no_sense_is_named(pipeline: str, options: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        workload(pipeline, **options)
    assert message in str(error.value)
