"""Single fields: what each takes, and what is said about what is wrong with it."""

from typing import Any

import pytest

from cluster.ai_models import load_ai_models
from cluster.ai_models_entry import OTHER_PIPELINES
from cluster.loopback.pipelines import CAPABILITIES
from deployments.registry import PIPELINES
from tests.cluster.ai_models.reading import TOKEN, Write, entry, problems


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"capacity": -1}, "capacity: must be at least 0, got -1"),
        ({"capacity": 10_001}, "capacity: must be at most 10000, got 10001"),
        ({"capacity": True}, "capacity: must be a whole number, got true"),
        ({"capacity": 2.0}, "capacity: must be a whole number, got 2.0"),
        ({"capacity": "2"}, 'capacity: must be a whole number, got "2"'),
        ({"warm": "true"}, 'warm: must be true or false, got "true"'),
        ({"warm": 1}, "warm: must be true or false, got 1"),
        ({"gateway": 3}, "gateway: must be a string, got 3"),
        ({"currency": False}, "currency: must be a string, got false"),
        ({"token": 3}, "token: must be a string"),
        ({"url": 3}, "url: must be a string"),
        ({"ray": 3}, "ray: must be an object, got 3"),
        ({"ray": [1]}, "ray: must be an object"),
        ({"ray": {"num_gpus": -1}}, "ray.num_gpus: must be 0 (on the CPU), a fraction"),
        ({"ray": {"num_gpus": 1.5}}, "ray.num_gpus: must be 0 (on the CPU), a fraction"),
        ({"ray": {"num_gpus": True}}, "ray.num_gpus: must be a number, got true"),
        ({"ray": {"num_gpus": 1e999}}, "not JSON: Infinity is not a JSON value"),
        ({"ray": {"max_replicas": 0}}, "ray.max_replicas: must be at least 1, got 0"),
        ({"ray": {"max_ongoing_requests": 0}}, "ray.max_ongoing_requests: must be at least 1"),
        ({"ray": {"accelerator_type": ""}}, "ray.accelerator_type: must not be empty"),
        (
            {"ray": {"gpus": 1}},
            "ray.gpus: is not an option; the options are num_gpus, max_replicas, "
            "max_ongoing_requests, accelerator_type, engine",
        ),
        ({"ray": {"engine": 3}}, "ray.engine: must be a string, got 3"),
        (
            {"ray": {"engine": "vllm"}},
            'ray: text-to-image has no engine "vllm"; remove "engine", which is for llm',
        ),
        (
            {"pipeline": "llm", "ray": {"engine": "sglang"}},
            'ray: llm has no engine "sglang"; it has vllm',
        ),
        (
            {"pipeline": "llm", "ray": {"engine": "vllm", "num_gpus": 0}},
            'ray: engine "vllm" runs on GPUs only; remove it, or "num_gpus": 0',
        ),
        ({"ray": {"a\nb": 1}}, "ray.'a\\nb': is not an option"),
        ({"optimization_flags": []}, "optimization_flags: must be an object"),
        (
            {"optimization_flags": {"SFAST": "yes"}},
            'optimization_flags.SFAST: must be true or false, got "yes"',
        ),
        (
            {"warm": True, "optimization_flags": {"SFAST": True, "DEEPCACHE": "true"}},
            "optimization_flags: SFAST and DEEPCACHE cannot be combined; remove one of them",
        ),
        ({"model_id": ""}, 'model_id: must not be empty, got ""'),
        ({"model_id": 3}, "model_id: must be a string, got 3"),
        ({"model_id": None}, "model_id: is missing"),
        ({"model_id": "../../etc/passwd"}, "model_id: must be a Hugging Face id"),
        ({"model_id": "org/na:me"}, "model_id: must be a Hugging Face id"),
        ({"model_id": "org/na me"}, "model_id: must not contain blanks or control characters"),
        ({"model_id": "\x1b[2Jx", "url": "http://h"}, "model_id: must not contain blanks or"),
        ({"model_id": "\ud800", "url": "http://h"}, r'control characters, got "\ud800"'),
        ({"model_id": "x" * 200}, 'got "' + "x" * 56 + "..."),
        ({"pipeline": None}, "pipeline: is missing"),
    ],
)
def test_wrong_field(write: Write, fields: dict[str, Any], expected: str) -> None:
    (problem,) = problems(write([entry(**fields)]))
    assert expected in problem
    assert problem.startswith(("entry 1 (", "entry 1: ", "not JSON"))


@pytest.mark.parametrize("number", ["1e999", "1" + "0" * 400])
def test_gpus_beyond_all_bounds(write: Write, number: str) -> None:
    text = '[{"pipeline": "text-to-image", "model_id": "a/b", "ray": {"num_gpus": NUMBER}}]'
    (problem,) = problems(write(text.replace("NUMBER", number)))
    assert "ray.num_gpus: must be" in problem


@pytest.mark.parametrize(
    "fields",
    [
        {"price_per_unit": {"token": TOKEN}},
        {"ray": [TOKEN]},
        {"optimization_flags": {"SFAST": [TOKEN]}},
        {"model_id": {"token": TOKEN}},
    ],
)
def test_objects_and_lists_are_not_quoted(write: Write, fields: dict[str, Any]) -> None:
    assert TOKEN not in "".join(problems(write([entry(**fields)])))


def test_unknown_pipeline_names_the_known_ones(write: Write) -> None:
    (problem,) = problems(write([entry(pipeline="text2image")]))
    assert problem.startswith("entry 1 (text2image org/name): pipeline: must be one of ")
    assert all(name in problem for name in PIPELINES)
    assert problem.endswith('got "text2image"')


def test_the_registry_s_pipelines_are_the_network_s() -> None:
    # The loopback orchestrator has the network's table of its own, from go-livepeer.
    network = {name: number for number, name in CAPABILITIES.items()}
    ours = {name: pipeline.capability for name, pipeline in PIPELINES.items()}
    assert ours == {name: network[name] for name in network if name not in OTHER_PIPELINES}


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://host",
        "http://",
        "http://host:port",
        "http://host:0",
        "http://host:70000",
        f"http://user:{TOKEN}@host:8000",
        f"http://host:8000?key={TOKEN}",
        "http://host/#x",
        "http://host /",
        "http://host\n",
        TOKEN,
    ],
)
def test_urls_that_are_none_are_not_repeated(write: Write, url: str) -> None:
    (problem,) = problems(write([entry(url=url)]))
    assert "url: must be http://HOST:PORT or https://HOST:PORT" in problem
    assert TOKEN not in problem


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://llm_runner:8000/", "http://llm_runner:8000"),
        ("HTTPS://gpu-1.example.org/ai/", "HTTPS://gpu-1.example.org/ai"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_urls(write: Write, url: str, expected: str) -> None:
    models = load_ai_models(write([entry(url=url, model_id="any:id-that/the/container_knows")]))
    assert models.models[0].url == expected


@pytest.mark.parametrize("token", [12345678, "two words", "line\nbreak", "tök"])
def test_token_has_to_fit_a_header(write: Write, token: object) -> None:
    (problem,) = problems(write([entry(url="http://h", token=token)]))
    assert "token: must be " in problem
    assert str(token) not in problem


def test_every_problem_at_once(write: Write) -> None:
    found = problems(
        write(
            [
                entry(capacity=-1, warm="yes", ray={"num_gpus": 2.5}),
                3,
                entry(pipeline="nope", model_id="a//b", token=5),
                entry(),
                {},
            ]
        )
    )
    assert [problem.split(", got")[0].split(": must")[0] for problem in found] == [
        "entry 1 (text-to-image org/name): warm",
        "entry 1 (text-to-image org/name): capacity",
        "entry 1 (text-to-image org/name): ray.num_gpus",
        "entry 2",
        "entry 3 (nope a//b): pipeline",
        "entry 3 (nope a//b): model_id",
        "entry 3 (nope a//b): token",
        "entry 5: pipeline: is missing",
        "entry 5: model_id: is missing",
    ]
