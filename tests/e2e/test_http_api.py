"""The HTTP API over real models: every pipeline, by a client made of its OpenAPI document."""

import asyncio
import base64
import io
import json
import wave
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import numpy as np
import pytest
from PIL import Image

from deployments.registry import PIPELINES
from tests.e2e.conftest import PIPELINE, SECOND, TINY, Deployed
from tests.e2e.openapi_client import OpenAPIClient
from tests.e2e.programs import PATIENCE_S
from tests.e2e.test_pipelines import picture, sound

SMALL = {"width": 64, "height": 64, "num_inference_steps": 1, "safety_check": False}
LONG = {"width": 512, "height": 512, "num_inference_steps": 200, "num_images_per_prompt": 4}

VALUES: dict[str, Any] = {
    "prompt": "a bear",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "text": "There you go.",
    "image": picture(),
    "audio": sound(),
    "box": "[8, 8, 40, 30]",
    "max_tokens": 8,
    "width": 128,
    "height": 64,
    "num_inference_steps": 2,
}
"""What to send for a parameter, whatever the operation."""


@pytest.fixture
async def http(deployed: Deployed) -> AsyncIterator[aiohttp.ClientSession]:
    """A session at the API's url, once that answers."""
    async with aiohttp.ClientSession(deployed.http) as http, asyncio.timeout(PATIENCE_S):
        while True:
            try:
                async with http.get("/health") as response:
                    if response.status == 200:
                        break
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(0.2)
        yield http


async def healthy(http: aiohttp.ClientSession, pipeline: str, model_id: str) -> None:
    """Waits until a model is served."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            async with http.get(f"/{pipeline}/{model_id}/health") as response:
                if (await response.json()) == {"status": "OK"}:
                    return
            await asyncio.sleep(0.2)


def served(deployed: Deployed) -> dict[str, str]:
    """A model of each pipeline."""
    entries = json.loads(deployed.ai_models.read_text())
    return {entry["pipeline"]: entry["model_id"] for entry in entries} | {PIPELINE: TINY}


async def test_every_pipeline_by_its_openapi_document(
    http: aiohttp.ClientSession, deployed: Deployed
) -> None:
    client = await OpenAPIClient.of(http)
    models = served(deployed)
    assert len(client.operations) == len(PIPELINES)
    for pipeline, operation in zip(PIPELINES, client.operations, strict=True):
        known = client.parameters(operation)
        request = {name: value for name, value in VALUES.items() if name in known}
        request["model" if "model" in known else "model_id"] = models[pipeline]
        await healthy(http, pipeline, models[pipeline])
        base = f"/{pipeline}/{models[pipeline]}"
        answers = [await client.call(operation, base=where, **request) for where in ("", base)]
        assert [answer.status for answer in answers] == [200, 200], (pipeline, answers)
        for answer in answers:
            CHECKS[pipeline](answer.document)
        version = (await client.call("version", base=base)).document
        assert (version["pipeline"], version["model_id"]) == (pipeline, models[pipeline])
        for operation_id in ("health", "hardware_info", "hardware_stats"):
            assert (await client.call(operation_id, base=base)).status == 200


async def test_a_stream_is_relayed(http: aiohttp.ClientSession, deployed: Deployed) -> None:
    model_id = served(deployed)["llm"]
    await healthy(http, "llm", model_id)
    request = {"messages": VALUES["messages"], "max_tokens": 40, "stream": True}
    async with http.post(f"/llm/{model_id}/llm", json=request) as response:
        assert response.content_type == "text/event-stream"
        lines = [line.strip() async for line in response.content if line.strip()]
    *events, done = [line.removeprefix(b"data: ") for line in lines]
    assert done == b"[DONE]"
    chunks = [json.loads(event)["choices"][0] for event in events]
    assert len(chunks) > 1
    assert [bool(chunk["finish_reason"]) for chunk in chunks] == [False] * (len(chunks) - 1) + [
        True
    ]


async def test_a_client_that_leaves_takes_its_work_along(
    http: aiohttp.ClientSession, deployed: Deployed
) -> None:
    await healthy(http, PIPELINE, SECOND)
    path = f"/{PIPELINE}/{SECOND}/{PIPELINE}"
    long = asyncio.create_task(http.post(path, json={"prompt": "a", **LONG}))
    await asyncio.wait({long}, timeout=2.0)
    # It runs, in the only slot there is, and who asks for another hears so at once.
    assert not long.done()
    status, document = await asked(http, path)
    assert status == 503
    assert document["detail"]["msg"].startswith("insufficient capacity")
    long.cancel()
    log = deployed.models_dir / "serve-run.log"
    async with asyncio.timeout(PATIENCE_S):
        while "stopped what nobody waits for" not in log.read_text(errors="replace"):
            await asyncio.sleep(0.2)
    assert (await asked(http, path))[0] == 200


async def asked(http: aiohttp.ClientSession, path: str) -> tuple[int, Any]:
    async with http.post(path, json={"prompt": "a", **SMALL}) as response:
        return response.status, await response.json()


async def test_models_that_do_not_load_are_told_apart(http: aiohttp.ClientSession) -> None:
    health: dict[str, str] = {}
    async with asyncio.timeout(PATIENCE_S):
        while health.get("livepeer-ray/never-downloaded") != "ERROR":
            for model_id in (TINY, "livepeer-ray/never-downloaded"):
                async with http.get(f"/{PIPELINE}/{model_id}/health") as response:
                    health[model_id] = (await response.json())["status"]
            await asyncio.sleep(0.2)


def _file(url: str, media_type: str) -> io.BytesIO:
    head, _, data = url.partition(",")
    assert head == f"data:{media_type};base64"
    return io.BytesIO(base64.b64decode(data, validate=True))


def _image(entry: Any) -> Image.Image:
    assert isinstance(entry["seed"], int)
    return Image.open(_file(entry["url"], "image/png"))


def _one_image(width: int, height: int) -> Any:
    def check(document: Any) -> None:
        (entry,) = document["images"]
        assert _image(entry).size == (width, height)

    return check


def _frames(document: Any) -> None:
    (frames,) = document["frames"]
    assert len(frames) > 1
    assert {_image(frame).size for frame in frames} == {(128, 64)}


def _masks(document: Any) -> None:
    assert np.array(json.loads(document["masks"])).shape[1:] == (96, 128)


def _chat(document: Any) -> None:
    (choice,) = document["choices"]
    assert choice["message"]["role"] == "assistant"


def _speech(document: Any) -> None:
    with wave.open(_file(document["audio"]["url"], "audio/wav")) as speech:
        assert speech.getnframes() > 0


CHECKS: dict[str, Any] = {
    "text-to-image": _one_image(128, 64),
    "image-to-image": _one_image(128, 96),
    "image-to-video": _frames,
    "upscale": _one_image(512, 384),
    "audio-to-text": lambda document: document["text"],
    "segment-anything-2": _masks,
    "llm": _chat,
    "image-to-text": lambda document: document["text"],
    "text-to-speech": _speech,
}
"""Of what the schema does not say."""
