"""optimization_flags: in every spelling, and where they have no effect."""

from typing import Any

import pytest

from cluster.ai_models import OptimizationFlags, load_ai_models
from tests.cluster.ai_models.reading import Write, entry, warnings


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
            {"warm": True, "pipeline": "llm"},
            "optimization_flags: ignored, they are for diffusion models",
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
    assert said.startswith(f"entry 1 ({fields.get('pipeline', 'text-to-image')} ")
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
