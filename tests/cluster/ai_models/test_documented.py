"""Files as they are documented and as go-livepeer reads them."""

from typing import Any

import pytest

from cluster.ai_models import AIModel, OptimizationFlags, RayOptions, format_table, load_ai_models
from deployments.registry import PIPELINES
from tests.cluster.ai_models.reading import Write, entry, problems, warnings

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


def test_an_engine_of_a_pipeline_s_own(write: Write) -> None:
    fields = entry(pipeline="llm", ray={"engine": "vllm", "num_gpus": 4})
    models = load_ai_models(write([fields]))
    assert (models.models[0].ray.engine, models.warnings) == ("vllm", ())
    assert format_table(models).endswith("Ray, 4 GPU a replica, engine vllm, 16 requests at a time")


def test_gpus_that_nothing_would_use_are_told(write: Write) -> None:
    models = load_ai_models(
        write([entry(ray={"num_gpus": 2}), entry(pipeline="llm", ray={"num_gpus": 2})])
    )
    idle = (
        "ray.num_gpus: this replica computes on one GPU and leaves the others idle; lower it to 1"
    )
    assert warnings(models) == [
        f"entry 1 (text-to-image org/name): {idle}",
        f'entry 2 (llm org/name): {idle} or set "engine": "vllm"',
    ]
    assert [model.ray.num_gpus for model in models.models] == [2, 2]


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
    ("pipeline", "options", "slots"),
    [
        ("llm", {}, PIPELINES["llm"].slots),
        ("llm", {"num_gpus": 0.5}, PIPELINES["llm"].slots),
        ("llm", {"max_ongoing_requests": 1}, 1),
        ("llm", {"max_ongoing_requests": 64}, 64),
        ("upscale", {}, 1),
    ],
)
def test_slots_are_the_pipeline_s_where_the_entry_names_none(
    write: Write, pipeline: str, options: dict[str, Any], slots: int
) -> None:
    (model,) = load_ai_models(write([entry(pipeline=pipeline, ray=options)])).models
    assert model.ray.max_ongoing_requests == slots


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
