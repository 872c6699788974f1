"""aiModels.json: what is read from it, and what is said about what is wrong with it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.ai_models import (
    DEFAULT_AI_MODELS,
    AIModel,
    AIModels,
    ModelKey,
    OptimizationFlags,
    RayOptions,
    format_table,
    load_ai_models,
)
from cluster.ai_models_entry import OTHER_PIPELINES
from cluster.commands import validate
from cluster.errors import AIModelsError
from cluster.loopback.pipelines import CAPABILITIES
from deployments.registry import PIPELINES

TOKEN = "tok-3f9a1c"  # in no other word of these tests, so that a leak can be searched for

Write = Callable[[object], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes an aiModels.json: text as it is, anything else as JSON."""

    def write_file(document: object) -> Path:
        path = tmp_path / "aiModels.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path

    return write_file


def entry(**fields: Any) -> dict[str, Any]:
    return {"pipeline": "text-to-image", "model_id": "org/name", **fields}


def problems(source: Path | str) -> list[str]:
    """Returns the problems without the name of the file, which each has to carry."""
    with pytest.raises(AIModelsError) as caught:
        load_ai_models(source)
    prefix = f"{source}: "
    assert all(problem.startswith(prefix) for problem in caught.value.problems)
    return [problem.removeprefix(prefix) for problem in caught.value.problems]


def warnings(models: AIModels) -> list[str]:
    return [warning.removeprefix(f"{models.source}: ") for warning in models.warnings]


# --- documented files -------------------------------------------------------------------------

DOCUMENTED = """[
  {
    "pipeline": "text-to-image",
    "model_id": "SG161222/RealVisXL_V4.0_Lightning",
    "price_per_unit": 4768371
  },
  {
    "pipeline": "upscale",
    "model_id": "stabilityai/stable-diffusion-x4-upscaler",
    "price_per_unit": "0.5e-2USD",
    "warm": true,
    "optimization_flags": {"SFAST": true, "DEEPCACHE": false}
  },
  {
    "pipeline": "audio-to-text",
    "model_id": "openai/whisper-large-v3",
    "price_per_unit": 12882811,
    "pixels_per_unit": 1,
    "currency": "USD",
    "url": "http://my-external-container:8000",
    "token": "optional-bearer-token",
    "capacity": 2
  },
  {
    "pipeline": "llm",
    "model_id": "meta-llama/Meta-Llama-3.1-8B-Instruct",
    "warm": true,
    "price_per_unit": 0.18,
    "currency": "USD",
    "pixels_per_unit": 1000000,
    "url": "http://llm_runner:8000"
  },
  {"pipeline": "live-video-to-video", "model_id": "my-pipeline", "url": "http://localhost:8000"}
]"""
"""The samples of the operators' documentation (models-config, ai-pipelines) and of ai-runner's
docs/custom-pipeline.md, in one file."""


def test_documented_file(write: Write) -> None:
    models = load_ai_models(write(DOCUMENTED))

    image, upscale, audio, llm = models.models
    assert image == AIModel(pipeline="text-to-image", model_id="SG161222/RealVisXL_V4.0_Lightning")
    assert upscale.warm
    assert upscale.flags == OptimizationFlags(sfast=True)
    assert audio.key == ("audio-to-text", "openai/whisper-large-v3")
    assert audio.url == "http://my-external-container:8000"
    assert audio.capacity == 2
    assert not audio.warm
    assert audio.token is not None
    assert audio.token.get_secret_value() == "optional-bearer-token"
    assert llm.url == "http://llm_runner:8000"
    assert llm.warm
    assert llm.token is None
    assert warnings(models) == [
        "entry 5 (live-video-to-video my-pipeline): "
        "pipeline: the network does not send it to remote AI workers, skipped",
    ]


def test_the_documentation_s_own_slips_are_explained(write: Write) -> None:
    """The first sample of models-config has a trailing comma, the last a placeholder url."""
    assert problems(write('[\n  {\n    "price_per_unit": 4768371,\n  }\n]')) == [
        "line 4, column 3: not JSON: Expecting property name enclosed in double quotes "
        "(remove the comma before it)"
    ]
    (problem,) = problems(write([entry(url="<CONTAINER_URL>:<PORT>")]))
    assert problem.startswith("entry 1 (text-to-image org/name): url: must be http://HOST:PORT or")


def test_our_own_fields(write: Write) -> None:
    options = {
        "num_gpus": 0.5,
        "max_replicas": 8,
        "max_ongoing_requests": 2,
        "accelerator_type": "A100",
    }
    flags = {"DEEPCACHE": True}
    fields = entry(warm=True, capacity=4, optimization_flags=flags, ray=options, gateway="default")
    models = load_ai_models(write([fields]))
    assert models.models == (
        AIModel(
            pipeline="text-to-image",
            model_id="org/name",
            warm=True,
            capacity=4,
            flags=OptimizationFlags(deepcache=True),
            ray=RayOptions(
                num_gpus=0.5, max_replicas=8, max_ongoing_requests=2, accelerator_type="A100"
            ),
        ),
    )
    assert models.warnings == ()


# --- as Go reads it ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"PIPELINE": "text-to-image", "Model_ID": "org/name", "Warm": True, "CAPACITY": 2},
        entry(warm=True, capacity=2, comment="unknown keys are ignored", nested={"a": [1]}),
        entry(warm=False, Warm=True, capacity=2, url=None, token=None, optimization_flags=None),
        entry(warm=True, capacity=2, url="", token="", gateway="", price_per_unit=None, ray={}),
        entry(warm=True, capacity=2, ray=None, optimization_flags={}, currency=None),
    ],
)
def test_the_same_to_go(write: Write, fields: dict[str, Any]) -> None:
    models = load_ai_models(write([fields]))
    expected = AIModel(pipeline="text-to-image", model_id="org/name", warm=True, capacity=2)
    assert models.models == (expected,)
    assert models.warnings == ()


@pytest.mark.parametrize("capacity", [{}, {"capacity": 0}, {"capacity": None}, {"capacity": 1}])
def test_capacity_is_one_where_none_is_given(write: Write, capacity: dict[str, Any]) -> None:
    assert load_ai_models(write([entry(**capacity)])).models[0].capacity == 1


@pytest.mark.parametrize(
    "price", [0, 4768371, 0.18, 1e-9, "4768371", "0.5e-2USD", "0.18USD", "1E3", "12ETH"]
)
def test_prices_as_documented(write: Write, price: object) -> None:
    models = load_ai_models(write([entry(price_per_unit=price, pixels_per_unit=price)]))
    assert models.models == (AIModel(pipeline="text-to-image", model_id="org/name"),)


@pytest.mark.parametrize("price", [{}, [1], True, "cheap", "", "1 USD", "-1"])
@pytest.mark.parametrize("field", ["price_per_unit", "pixels_per_unit"])
def test_prices_that_are_none(write: Write, field: str, price: object) -> None:
    (problem,) = problems(write([entry(**{field: price})]))
    assert f"(text-to-image org/name): {field}: must be a number, or a string such as" in problem


# --- single fields ----------------------------------------------------------------------------


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
            "max_ongoing_requests, accelerator_type",
        ),
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


# --- flags ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [True, "true", "True", " TRUE ", "1"])
def test_flag_on(write: Write, value: object) -> None:
    models = load_ai_models(write([entry(warm=True, optimization_flags={"SFAST": value})]))
    assert models.models[0].flags == OptimizationFlags(sfast=True)
    assert models.warnings == ()


@pytest.mark.parametrize("value", [False, "false", "FALSE", "0", "", None])
def test_flag_off(write: Write, value: object) -> None:
    flags = {"SFAST": value, "DEEPCACHE": True}
    models = load_ai_models(write([entry(warm=True, optimization_flags=flags)]))
    assert models.models[0].flags == OptimizationFlags(deepcache=True)


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"warm": False}, "optimization_flags: ignored on a cold model; set warm to true"),
        (
            {"warm": True, "model_id": "SG161222/RealVisXL_V4.0_Lightning"},
            "optimization_flags: DEEPCACHE ignored: it costs a Lightning or Turbo model",
        ),
        (
            {"warm": True, "model_id": "stabilityai/sdxl-turbo"},
            "optimization_flags: DEEPCACHE ignored: it costs a Lightning or Turbo model",
        ),
        (
            {"warm": True, "url": "http://h:1"},
            "optimization_flags: ignored, the model runs at its url",
        ),
    ],
)
def test_flags_that_are_dropped(write: Write, fields: dict[str, Any], warning: str) -> None:
    models = load_ai_models(write([entry(optimization_flags={"DEEPCACHE": True}, **fields)]))
    assert models.models[0].flags == OptimizationFlags()
    (said,) = warnings(models)
    assert said.startswith("entry 1 (text-to-image ")
    assert warning in said


def test_sfast_stays_on_a_turbo_model(write: Write) -> None:
    fields = entry(model_id="stabilityai/sd-turbo", warm=True, optimization_flags={"SFAST": True})
    models = load_ai_models(write([fields]))
    assert models.models[0].flags.sfast
    assert models.warnings == ()


def test_flags_that_are_off_need_no_warning(write: Write) -> None:
    assert load_ai_models(write([entry(optimization_flags={"SFAST": False})])).warnings == ()


def test_other_flags_are_named_and_ignored(write: Write) -> None:
    flags = {"SFAST_WARMUP": False, "sfast": True, "SFAST": True, "\x1b": 1}
    models = load_ai_models(write([entry(warm=True, optimization_flags=flags)]))
    assert models.models[0].flags == OptimizationFlags(sfast=True)
    assert [warning.split(": ")[2].split(" is")[0] for warning in warnings(models)] == [
        '"SFAST_WARMUP"',
        '"sfast"',
        r'"\u001b"',
    ]


# --- several entries --------------------------------------------------------------------------


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


def test_what_does_not_apply_is_ignored_with_a_warning(write: Write) -> None:
    models = load_ai_models(
        write([entry(token=TOKEN), entry(model_id="b", url="http://h", ray={"num_gpus": 2})])
    )
    assert models.models[0].token is None
    assert models.models[1].ray == RayOptions()
    assert warnings(models) == [
        "entry 1 (text-to-image org/name): token: ignored without a url",
        "entry 2 (text-to-image b): ray: ignored, the model runs at its url",
    ]


# --- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"a": 1}', "line 1, column 10: not JSON: Expecting ',' delimiter"),
        ('[\n {"a": tru}]', "line 2, column 8: not JSON: Expecting value"),
        ("[1,\n]", "line 2, column 1: not JSON: Expecting value (remove the comma before it)"),
        ("", "line 1, column 1: not JSON: Expecting value"),
        ("[NaN]", "not JSON: NaN is not a JSON value"),
        (f"[{'9' * 5000}]", "not JSON: a number without end"),
        ("[" * 100_000, "not an aiModels.json: nested too deeply"),
        ("[]", "the list is empty: add an entry with a pipeline and a model_id"),
        ("{}", "must be a list of entries, [{...}, {...}], got an object"),
        ("null", "must be a list of entries, [{...}, {...}], got null"),
        (f'"{TOKEN}"', "must be a list of entries, [{...}, {...}], got a string"),
    ],
)
def test_broken_file(write: Write, text: str, expected: str) -> None:
    assert problems(write(text)) == [expected]


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "models"
    path.write_bytes(b"[\n\xff]")
    assert problems(path) == ["line 2: not UTF-8 text; save the file as UTF-8"]


def test_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "aiModels.json"
    path.write_text(json.dumps([entry()]), encoding="utf-8-sig")
    assert len(load_ai_models(str(path)).models) == 1


def test_directory(tmp_path: Path) -> None:
    assert problems(tmp_path) == ["is a directory; name the file in it, such as aiModels.json"]


def test_file_that_may_not_be_read() -> None:
    # /proc/self/mem is there for everybody, root included, and fails to read at offset 0.
    (problem,) = problems("/proc/self/mem")
    assert problem.startswith("cannot be read: ")


@pytest.mark.parametrize(
    "source",
    [
        "/nowhere/aiModels.json",
        "nowhere.json",
        "./no:where",
        "/no:where/models",
        "no:where.json",
        "models",
        "conf/models",
        "/etc/hostname/aiModels.json",
        "no\0where.json",
        Path("a:b:c"),
    ],
)
def test_no_such_file(source: str | Path) -> None:
    with pytest.raises(AIModelsError, match=r": no such file; name one that exists, or models as"):
        load_ai_models(source)


def test_home_is_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert validate.run(str(DEFAULT_AI_MODELS)) == 2
    assert f"{tmp_path}/.lpData/aiModels.json: no such file" in capsys.readouterr().err

    (tmp_path / ".lpData").mkdir()
    (tmp_path / ".lpData" / "aiModels.json").write_text(json.dumps([entry()]))
    models = load_ai_models(DEFAULT_AI_MODELS)
    assert models.source == f"{tmp_path}/.lpData/aiModels.json"
    assert load_ai_models("~/.lpData/aiModels.json") == models


def test_home_of_nobody() -> None:
    assert problems("~nobody-by-this-name/x.json") == ["there is no such home directory"]


# --- the short form ---------------------------------------------------------------------------


def test_short_form() -> None:
    text = "text-to-image:org/name:true, text-to-image:a/b:F,text-to-image:org/name:1"
    models = load_ai_models(text)
    assert models.models == (
        AIModel(pipeline="text-to-image", model_id="org/name", warm=True, capacity=2),
        AIModel(pipeline="text-to-image", model_id="a/b"),
    )
    assert models.source == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("text-to-image:org/name", ["entry 1 (text-to-image org/name): warm: must be true or fa"]),
        (
            "text-to-image:a/b:true,text-to-image:org/name:yes",
            ['entry 2 (text-to-image org/name): warm: must be true or false, got "yes"'],
        ),
        (
            "text-to-image:org/name:true:2",
            ['entry 1 (text-to-image org/name): warm: must be true or false, got "true:2"'],
        ),
        (
            "text-to-image:a/b:true,",
            [
                "entry 2: pipeline: must be one of ",
                "entry 2: model_id: must not be empty",
                "entry 2: warm: must be true or false",
            ],
        ),
        ("a:b:true", ["entry 1 (a b): pipeline: must be one of "]),
    ],
)
def test_broken_short_form(text: str, expected: list[str]) -> None:
    with pytest.raises(AIModelsError) as caught:
        load_ai_models(text)
    found = caught.value.problems
    assert len(found) == len(expected)
    for problem, words in zip(found, expected, strict=True):
        assert f"short form (pipeline:model_id:warm,...): {words}" in problem


@pytest.mark.parametrize("text", ["", "  "])
def test_no_source(text: str) -> None:
    with pytest.raises(AIModelsError, match=r"^no AI models given: name a file, or models as"):
        load_ai_models(text)


def test_a_file_wins_over_the_short_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text-to-image:x:true").write_text(json.dumps([entry()]))
    assert load_ai_models("text-to-image:x:true").models[0].model_id == "org/name"


def test_short_form_longer_than_a_path() -> None:
    models = load_ai_models(",".join(["text-to-image:org/name:true"] * 200))
    assert models.models[0].capacity == 200


# --- what is shown ----------------------------------------------------------------------------


def test_table(write: Write) -> None:
    models = load_ai_models(
        write(
            [
                entry(warm=True, capacity=12, optimization_flags={"SFAST": True}),
                entry(model_id="a/b", ray={"num_gpus": 0}),
                entry(
                    model_id="b",
                    ray={
                        "num_gpus": 0.25,
                        "max_replicas": 3,
                        "max_ongoing_requests": 2,
                        "accelerator_type": "L40S",
                    },
                ),
                entry(pipeline="llm", model_id="c/d", warm=True, url="http://h:8000", token=TOKEN),
            ]
        )
    )
    assert format_table(models).splitlines() == [
        "PIPELINE       MODEL     WARM  CAPACITY  FLAGS  RUNS ON",
        "text-to-image  org/name  yes   12        SFAST  Ray, 1 GPU a replica",
        "text-to-image  a/b       no    1         -      Ray, CPU",
        "text-to-image  b         no    1         -      Ray, 0.25 GPU a replica, on L40S, "
        "2 requests at a time, up to 3 replicas",
        "llm            c/d       yes   1         -      http://h:8000",
    ]
    assert TOKEN not in repr(models)


def test_validate_prints_the_table_and_warnings(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write([entry(warm=True), entry(pipeline="byoc")])
    assert validate.run(str(path)) == 0
    out, err = capsys.readouterr()
    assert out == format_table(load_ai_models(path)) + "\n"
    assert err == (
        f"warning: {path}: entry 2 (byoc org/name): pipeline: the network does not send it to "
        "remote AI workers, skipped\n"
    )


def test_validate_prints_every_problem(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write([entry(capacity=-1), entry(warm=3)])
    assert validate.run(str(path)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"{path}: entry 1 (text-to-image org/name): capacity: must be at least 0, got -1",
        f"{path}: entry 2 (text-to-image org/name): warm: must be true or false, got 3",
    ]


def test_import_is_light() -> None:
    heavy = ["torch", "diffusers", "transformers", "huggingface_hub", "ray", "grpc", "aiohttp"]
    code = (
        "import sys, cluster.ai_models, cluster.commands.validate\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
