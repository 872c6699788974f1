"""text-to-image requests as Go sends them, their bounds, and what a caller is told."""

import json
import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.errors import BadRequest, InferenceFailed
from deployments.schemas.base import MediaFile
from deployments.schemas.images import MAX_SEED, Image, ImagesResult
from deployments.schemas.text_to_image import TextToImageRequest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def test_defaults_are_the_reference_runners() -> None:
    parsed = TextToImageRequest.parse({"prompt": "a cat"})
    assert parsed.model_dump() == {
        "model_id": "",
        "prompt": "a cat",
        "loras": "",
        "height": 576,
        "width": 1024,
        "guidance_scale": 7.5,
        "negative_prompt": "",
        "safety_check": True,
        "seed": None,
        "num_inference_steps": 50,
        "num_images_per_prompt": 1,
    }


def test_takes_what_go_marshals() -> None:
    body = json.loads(
        '{"prompt":"caf\\u00e9 \\u0026 \\u003cb\\u003e","model_id":"a/b","width":512,"height":512,'
        '"guidance_scale":7,"seed":null,"image":null,"loras":null,"safety_check":false,"unknown":{"a":1},'
        '"num_inference_steps":4.0}'
    )
    parsed = TextToImageRequest.parse(body)
    assert parsed.prompt == "café & <b>"
    assert parsed.guidance_scale == 7.0
    assert isinstance(parsed.guidance_scale, float)
    assert parsed.seed is None
    assert parsed.loras == ""
    assert parsed.num_inference_steps == 4


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"prompt": None}, "prompt: "),
        ({"prompt": ""}, "prompt: "),
        ({"prompt": "x" * 10_001}, "prompt: "),
        ({"prompt": 5}, "prompt: "),
        ({"width": 513}, "width: "),
        ({"width": 56}, "width: "),
        ({"width": 2056}, "width: "),
        ({"height": -512}, "height: "),
        ({"height": 512.5}, "height: "),
        ({"num_inference_steps": 0}, "num_inference_steps: "),
        ({"num_inference_steps": 201}, "num_inference_steps: "),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt: "),
        ({"num_images_per_prompt": 11}, "num_images_per_prompt: "),
        ({"guidance_scale": -1}, "guidance_scale: "),
        ({"guidance_scale": math.nan}, "guidance_scale: "),
        ({"guidance_scale": math.inf}, "guidance_scale: "),
        ({"seed": 2**63}, "seed: "),
        ({"seed": MAX_SEED + 1}, "seed: "),
        ({"loras": "x" * 2001}, "loras: "),
    ],
)
def test_a_bad_parameter_is_named(parameters: dict[str, Any], named: str) -> None:
    with pytest.raises(BadRequest) as error:
        TextToImageRequest.parse({"prompt": "a cat", **parameters})
    assert str(error.value).startswith(named)
    assert "\n" not in str(error.value)


def test_all_bad_parameters_are_named_at_once() -> None:
    with pytest.raises(BadRequest) as error:
        TextToImageRequest.parse({"width": 7, "height": 7})
    assert all(name in str(error.value) for name in ("prompt: ", "width: ", "height: "))


@given(st.dictionaries(st.sampled_from(sorted(TextToImageRequest.model_fields)), JSON) | JSON)
def test_any_json_is_taken_or_refused_in_one_line(body: object) -> None:
    answer = "taken"
    try:
        TextToImageRequest.parse(body)
    except BadRequest as error:
        answer = str(error)
    assert answer
    assert "\n" not in answer


def test_the_document_is_the_runner_apis() -> None:
    result = ImagesResult(
        images=tuple(
            Image(file=MediaFile(data=b"x", media_type="image/png"), seed=seed, nsfw=seed == 8)
            for seed in (7, 8)
        )
    )
    assert len(result.files) == 2
    assert result.document(["a.png", "b.png"]) == {
        "images": [
            {"url": "a.png", "seed": 7, "nsfw": False},
            {"url": "b.png", "seed": 8, "nsfw": True},
        ]
    }
    with pytest.raises(ValueError, match="zip"):
        result.document(["a.png"])


@pytest.mark.parametrize("error", [BadRequest("width: no"), InferenceFailed("out of memory")])
def test_errors_survive_the_way_to_the_caller(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 (our own bytes)
    assert type(copy) is type(error)
    assert str(copy) == str(error)
