"""What the demo asks for."""

from typing import Any

import pytest

from cluster.demo.inputs import picture, sound
from cluster.demo.samples import EVERY_PIPELINE, INPUT_FILES, PROMPTS, Sample
from deployments.registry import PIPELINES


def test_every_pipeline_has_a_sample() -> None:
    assert [sample.pipeline for sample in EVERY_PIPELINE] == list(PIPELINES)


@pytest.mark.parametrize("sample", [*PROMPTS, *EVERY_PIPELINE], ids=lambda sample: sample.name)
def test_a_sample_is_a_request_of_its_pipeline(sample: Sample) -> None:
    pipeline = PIPELINES[sample.pipeline]
    given: dict[str, Any] = dict(sample.fields)
    assert sample.file == pipeline.file
    if sample.file:
        given[sample.file] = {"image": picture, "audio": sound}[sample.file]()
        assert sample.file in INPUT_FILES
    assert given.keys() <= pipeline.request.model_fields.keys()
    pipeline.request.model_validate(given)
