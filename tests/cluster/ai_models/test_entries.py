"""Several entries: which add up, which stay apart, which contradict."""

from typing import Any

import pytest

from cluster.ai_models import ModelKey, RayOptions, load_ai_models
from deployments.registry import PIPELINES
from tests.cluster.ai_models.reading import TOKEN, Write, entry, problems, warnings


def test_identical_entries_add_up_at_the_place_of_the_first(write: Write) -> None:
    models = load_ai_models(
        write([entry(warm=True), entry(model_id="a/b"), entry(warm=True, capacity=3)])
    )
    assert [(str(model.key), model.capacity) for model in models.models] == [
        ("text-to-image org/name", 4),
        ("text-to-image a/b", 1),
    ]


def test_entries_with_different_urls_stay_apart(write: Write) -> None:
    models = load_ai_models(
        write(
            [
                entry(url="http://a:1", token="t1"),
                entry(capacity=2),
                entry(url="http://b:1", token="t2"),
                entry(url="http://a:1/", token="t1", capacity=4),
            ]
        )
    )
    assert [(model.url, model.capacity) for model in models.models] == [
        ("http://a:1", 5),
        (None, 2),
        ("http://b:1", 1),
    ]
    assert {model.key for model in models.models} == {ModelKey("text-to-image", "org/name")}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"warm": True}, {}, "warm: must be as in entry 1: a model is either warm or cold"),
        ({}, {"warm": True, "url": "http://h"}, "warm: must be as in entry 1"),
        (
            {"warm": True, "optimization_flags": {"SFAST": True}},
            {"warm": True},
            "optimization_flags: must be as in entry 1, which is the same model",
        ),
        ({"ray": {"num_gpus": 2}}, {}, "ray: must be as in entry 1"),
        (
            {"url": "http://h", "token": "a"},
            {"url": "http://h", "token": "b"},
            "token: must be as in entry 1",
        ),
    ],
)
def test_entries_that_contradict(
    write: Write, first: dict[str, Any], second: dict[str, Any], expected: str
) -> None:
    (problem,) = problems(write([entry(**first), entry(model_id="a/b"), entry(**second)]))
    assert problem.startswith(f"entry 3 (text-to-image org/name): {expected}")


def test_the_same_id_in_two_pipelines_is_two_models(write: Write) -> None:
    models = load_ai_models(
        write([entry(warm=True), entry(pipeline="image-to-image", url="http://h")])
    )
    assert [model.pipeline for model in models.models] == ["text-to-image", "image-to-image"]


def test_max_replicas_below_the_summed_capacity(write: Write) -> None:
    options = {"max_replicas": 3}
    fits = entry(warm=True, capacity=3, ray=options)
    assert load_ai_models(write([fits])).models[0].ray.max_replicas == 3
    assert problems(write([fits, entry(warm=True, ray=options)])) == [
        "entry 1 (text-to-image org/name): ray.max_replicas: must be at least the model's "
        "capacity, 4, got 3"
    ]


def test_nothing_that_a_worker_serves(write: Write) -> None:
    assert problems(write([entry(pipeline="byoc")])) == [
        f"no entry is of a pipeline that a worker serves ({', '.join(PIPELINES)})"
    ]


def test_a_misspelt_field_is_named_and_a_comment_is_not(write: Write) -> None:
    models = load_ai_models(write([entry(capcity=4, comment="for the weekend")]))
    assert models.models[0].capacity == 1
    assert warnings(models) == [
        'entry 1 (text-to-image org/name): "capcity" is ignored; is "capacity" meant?'
    ]


def test_what_does_not_apply_is_ignored_with_a_warning(write: Write) -> None:
    models = load_ai_models(
        write([entry(token=TOKEN), entry(model_id="b", url="http://h", ray={"num_gpus": 2})])
    )
    assert models.models[0].token is None
    assert models.models[1].ray == RayOptions()
    assert warnings(models) == [
        "entry 1 (text-to-image org/name): token: ignored without a url",
        "entry 2 (text-to-image b): ray: ignored but for live_runner_price, the model runs at "
        "its url",
    ]
