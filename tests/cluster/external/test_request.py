"""What reaches a container is what the Go worker would have sent it."""

from typing import Any

import aiohttp
import pytest

from cluster.ai_models import ModelKey
from cluster.backends.external import ExternalBackend
from cluster.errors import JobError
from deployments.registry import PIPELINES
from tests.cluster.external.runner import TOKEN, Seen, runner

ALL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # Per pipeline: the job's parameters, as the orchestrator's JSON has them, and the fields that
    # go-livepeer's ai/worker makes of them.
    "text-to-image": (
        {"prompt": 'a "bear"', "width": 512, "guidance_scale": 2, "safety_check": False, "seed": 0},
        {"prompt": 'a "bear"', "width": 512, "guidance_scale": 2, "safety_check": False, "seed": 0},
    ),
    "image-to-image": (
        {"prompt": "a\r\nbär", "strength": 0.8, "guidance_scale": 7, "image_guidance_scale": 1.25}
        | {"num_inference_steps": 4, "num_images_per_prompt": 2, "loras": '{"a/b": 1.0}'}
        | {"negative_prompt": "", "safety_check": True, "seed": -5},
        {"image": "file", "prompt": "a\r\nbär", "strength": "0.800000", "seed": "-5"}
        | {"guidance_scale": "7.000000", "image_guidance_scale": "1.250000"}
        | {"num_inference_steps": "4", "num_images_per_prompt": "2", "loras": '{"a/b": 1.0}'}
        | {"negative_prompt": "", "safety_check": "true"},
    ),
    "image-to-video": (
        {"fps": 8, "noise_aug_strength": 0.02, "motion_bucket_id": 127, "safety_check": False},
        {"image": "file", "fps": "8", "noise_aug_strength": "0.020000"}
        | {"motion_bucket_id": "127", "safety_check": "false"},
    ),
    "upscale": ({"prompt": ""}, {"image": "file", "prompt": ""}),
    "audio-to-text": (
        {"return_timestamps": "False", "metadata": '{"duration":"12"}'},
        {"audio": "file", "return_timestamps": "false", "metadata": '{"duration":"12"}'},
    ),
    "segment-anything-2": (
        {"box": "[8, 8, 40, 30]", "multimask_output": False},
        {"image": "file", "box": "[8, 8, 40, 30]", "multimask_output": "false"},
    ),
    "llm": (
        {"messages": [{"role": "user", "content": "hi"}], "temperature": 0.5, "top_k": 4},
        {"messages": [{"role": "user", "content": "hi"}], "temperature": 0.5, "top_k": 4},
    ),
    "image-to-text": ({}, {"image": "file"}),
    "text-to-speech": (
        {"text": "There you go.", "description": "calm"},
        {"text": "There you go.", "description": "calm"},
    ),
}


async def sent(pipeline: str, parameters: dict[str, Any], *, token: str = "") -> Seen:
    """What a container gets of a job."""
    spec, key = PIPELINES[pipeline], ModelKey(pipeline, "org/a")
    file = {spec.file: b"file"} if spec.file else {}
    request = spec.request.parse({**parameters, **file})
    async with runner("/base/path") as container, aiohttp.ClientSession() as http:
        container.status = 500
        backend = ExternalBackend(container.model(key, token=token), http=http)
        with pytest.raises(JobError):
            await backend.run(key, request, timeout_s=60)
        (seen,) = container.seen
        return seen


@pytest.mark.parametrize("pipeline", PIPELINES)
async def test_every_pipeline(pipeline: str) -> None:
    parameters, fields = ALL[pipeline]
    model = {PIPELINES[pipeline].model_field: "org/a"}
    seen = await sent(pipeline, {**parameters, **model}, token=TOKEN)
    assert seen.path == f"/base/path/{pipeline}"
    assert seen.headers["Authorization"] == f"Bearer {TOKEN}"
    assert int(seen.headers["Content-Length"]) > 0, "not chunked, which some servers refuse"
    if file := PIPELINES[pipeline].file:
        assert seen.fields == fields | model
        assert seen.files == {file: (file, "application/octet-stream")}
    else:
        assert seen.document == fields | model


async def test_a_job_without_a_model_is_sent_with_it_and_without_a_token() -> None:
    seen = await sent("llm", {"messages": [{"role": "user", "content": "hi"}]})
    assert seen.document["model"] == "org/a"
    assert "Authorization" not in seen.headers
