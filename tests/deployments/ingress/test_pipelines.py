"""Every pipeline: what reaches the model, and what its answer looks like."""

import base64
from typing import Any

import pytest

from deployments.ingress.config import ModelKey
from deployments.registry import PIPELINES
from deployments.schemas.audio_to_text import AudioToTextRequest
from deployments.schemas.image_to_video import FramesRequest
from deployments.schemas.segment_anything_2 import SegmentAnything2Request
from tests.deployments.ingress.conftest import API
from tests.deployments.ingress.requests import FILES, body
from tests.deployments.ingress.standin import WORDS, picture


def data_url(number: int) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture(number).data).decode()}"


IMAGES = {
    "images": [
        {"url": data_url(1), "seed": 7, "nsfw": False},
        {"url": data_url(2), "seed": 8, "nsfw": True},
    ]
}
ANSWERS: dict[str, Any] = {
    "text-to-image": IMAGES,
    "image-to-image": IMAGES,
    "image-to-video": {
        "frames": [[{"url": data_url(n), "seed": 7, "nsfw": False} for n in (1, 2)]]
    },
    "upscale": IMAGES,
    "audio-to-text": {"text": "Hello.", "chunks": [{"timestamp": [0.0, None], "text": "Hello."}]},
    "segment-anything-2": {"masks": "[[1.0]]", "scores": "[0.5]", "logits": "[[-3.0]]"},
    "llm": {
        "id": "chat-1",
        "model": "org/llm",
        "created": 1_700_000_000,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "".join(WORDS)},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6},
    },
    "image-to-text": {"text": "A bear."},
    "text-to-speech": {
        "audio": {"url": f"data:audio/wav;base64,{base64.b64encode(b'RIFF wav').decode()}"}
    },
}


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("address", ["/{0}", "/{0}/", "/{0}/org/{0}/{0}", "/{0}/org/{0}/{0}/"])
async def test_the_answer_is_the_reference_s(api: API, pipeline: str, address: str) -> None:
    assert await api.post(address.format(pipeline), **body(pipeline)) == (200, ANSWERS[pipeline])
    ((key, request),) = api.models.requests
    assert key == ModelKey(pipeline, f"org/{pipeline}")
    assert isinstance(request, PIPELINES[pipeline].request)
    if pipeline in FILES:
        assert getattr(request, FILES[pipeline]) == b"a file"


@pytest.mark.parametrize("pipeline", PIPELINES)
async def test_the_length_is_said(api: API, pipeline: str) -> None:
    async with api.http.post(f"/{pipeline}", **body(pipeline)) as response:
        assert response.content_type == "application/json"
        assert len(await response.read()) == int(response.headers["Content-Length"])


async def test_forms_carry_values_of_every_type(api: API) -> None:
    # As the Go worker writes them (ai/worker/multipart.go).
    form = body("image-to-video", width="512", noise_aug_strength="0.500000", safety_check="false")
    await api.post("/image-to-video", **form)
    ((_, request),) = api.models.requests
    assert isinstance(request, FramesRequest)
    assert (request.width, request.noise_aug_strength, request.safety_check) == (512, 0.5, False)
    assert (request.height, request.seed) == (576, None)


async def test_what_the_reference_takes_is_taken(api: API) -> None:
    metadata: dict[str, Any] = {"metadata": '{"duration": "12"}', "return_timestamps": "word"}
    assert (await api.post("/audio-to-text", **body("audio-to-text", **metadata)))[0] == 200
    ((_, request),) = api.models.requests
    assert isinstance(request, AudioToTextRequest)
    assert request.return_timestamps == "word"


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
async def test_a_mask_is_larger_than_other_fields(api: API) -> None:
    mask = str([[[0.12345678901234] * 256] * 256])
    assert len(mask) > 2**20
    form = body("segment-anything-2", mask_input=mask)
    assert (await api.post("/segment-anything-2", **form))[0] == 200
    ((_, request),) = api.models.requests
    assert isinstance(request, SegmentAnything2Request)
    assert request.mask()
