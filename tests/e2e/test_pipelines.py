"""Every pipeline over the whole path, with payloads like those of the network's job tester."""

import io
import json
import wave
from typing import Any

import aiohttp
import av
import numpy as np
from PIL import Image

from deployments.registry import PIPELINES
from tests.e2e.conftest import SECRET, Deployed, Orchestrator
from tests.e2e.programs import livepeer_ray


def picture(width: int = 128, height: int = 96) -> bytes:
    """A PNG with a gradient and a box."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, :, 0] = np.linspace(0, 255, width, dtype=np.uint8)
    pixels[height // 4 : height // 2, width // 4 : width // 2] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def sound(seconds: float = 2.0) -> bytes:
    """A WAV with a tone."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        times = np.arange(int(16_000 * seconds)) / 16_000
        out.writeframes((np.sin(times * 2 * np.pi * 440) * 8000).astype("<i2").tobytes())
    return file.getvalue()


def form(file: str, data: bytes, **fields: object) -> aiohttp.FormData:
    """A multipart form as a gateway's client sends it."""
    body = aiohttp.FormData()
    body.add_field(file, data, filename=f"{file}.bin")
    for name, value in fields.items():
        body.add_field(name, value if isinstance(value, str) else json.dumps(value))
    return body


class Answers:
    """Checks of each pipeline's answer."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http

    async def download(self, url: str) -> bytes:
        async with self._http.get(url) as response:
            assert response.status == 200
            return await response.read()

    async def image(self, answer: dict[str, Any]) -> Image.Image:
        (entry,) = answer["images"]
        assert isinstance(entry["seed"], int)
        assert entry["nsfw"] is False
        return Image.open(io.BytesIO(await self.download(entry["url"])))


REQUESTS: dict[str, dict[str, Any]] = {
    # As the network's job tester sends them; images and videos smaller, for a CPU: its video of
    # 1024x576 takes the tiny model 50 s.
    "text-to-image": {
        "json": {
            "prompt": "a bear wearing a hat",
            "width": 512,
            "height": 512,
            "num_inference_steps": 20,
            "guidance_scale": 2,
            "model_id": "livepeer-ray/tiny-sd",
        }
    },
    "image-to-image": {"file": "image", "prompt": "a bear", "num_inference_steps": 4},
    "image-to-video": {
        "file": "image",
        "width": 128,
        "height": 64,
        "fps": 8,
        "num_inference_steps": 2,
    },
    "upscale": {"file": "image", "prompt": "a bear", "num_inference_steps": 2},
    "audio-to-text": {"file": "audio"},
    "segment-anything-2": {
        "file": "image",
        "box": "[8, 8, 40, 30]",
        "multimask_output": False,
        "return_logits": False,
        "normalize_coords": True,
    },
    "llm": {
        "json": {
            "model": "livepeer-ray/tiny-qwen3",
            "max_tokens": 256,
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
        }
    },
    "image-to-text": {"file": "image"},
    "text-to-speech": {
        "json": {
            "model_id": "livepeer-ray/tiny-vits",
            "text": "There you go.",
            "description": "A calm voice.",
        }
    },
}


def body_of(pipeline: str) -> dict[str, Any]:
    """The keyword arguments of a POST."""
    request = dict(REQUESTS[pipeline])
    if "json" in request:
        return request
    file = request.pop("file")
    data = sound() if file == "audio" else picture()
    return {"data": form(file, data, **request)}


def test_every_pipeline_has_a_request_here() -> None:
    assert set(PIPELINES) <= set(REQUESTS)


async def test_all_pipelines(orchestrator: Orchestrator, deployed: Deployed) -> None:
    flags = (
        *("--orch-addr", orchestrator.address),
        *("--ray-address", deployed.ray.address),
        *("--ai-models", str(deployed.ai_models)),
    )
    answers = Answers(orchestrator.http)
    async with livepeer_ray("bridge", *flags, secret=SECRET):
        await orchestrator.serves(set(PIPELINES))
        for pipeline in PIPELINES:
            async with orchestrator.http.post(f"/{pipeline}", **body_of(pipeline)) as response:
                answer = await response.json()
                assert response.status == 200, (pipeline, answer)
            await CHECKS[pipeline](answers, answer)

        # llm, streamed: server-sent events, of which the last one finishes.
        request = {**REQUESTS["llm"]["json"], "stream": True}
        async with orchestrator.http.post("/llm", json=request) as response:
            assert response.content_type == "text/event-stream"
            lines = [line async for line in response.content if line.startswith(b"data: ")]
        events = [json.loads(line.removeprefix(b"data: ")) for line in lines]
        assert events[-1]["choices"][0]["finish_reason"] in ("stop", "length")
        assert all(not event["choices"][0]["finish_reason"] for event in events[:-1])


async def _an_image_of_512(answers: Answers, answer: Any) -> None:
    assert (await answers.image(answer)).size == (512, 512)


async def _an_image(answers: Answers, answer: Any) -> None:
    assert (await answers.image(answer)).size == (128, 96)


async def _an_image_four_times_as_large(answers: Answers, answer: Any) -> None:
    assert (await answers.image(answer)).size == (512, 384)


async def _a_video(answers: Answers, answer: Any) -> None:
    (entry,) = answer["images"]
    data = io.BytesIO(await answers.download(entry["url"]))
    with av.open(data, mode="r") as container:
        video = container.streams.video[0]
        assert (video.width, video.height) == (128, 64)
        assert video.average_rate == 8
        assert len(list(container.decode(video))) > 1


async def _text_with_chunks(_: Answers, answer: Any) -> None:
    assert isinstance(answer["text"], str)
    assert all(len(chunk["timestamp"]) == 2 for chunk in answer["chunks"])


async def _masks(_: Answers, answer: Any) -> None:
    masks = np.array(json.loads(answer["masks"]))
    assert masks.shape == (1, 96, 128)
    assert set(np.unique(masks)) <= {0.0, 1.0}
    assert len(json.loads(answer["scores"])) == 1


async def _a_chat_answer(_: Answers, answer: Any) -> None:
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] in ("stop", "length")
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def _text(_: Answers, answer: Any) -> None:
    assert answer["text"]


async def _speech(answers: Answers, answer: Any) -> None:
    data = await answers.download(answer["audio"]["url"])
    with wave.open(io.BytesIO(data)) as speech:
        assert speech.getnframes() > 0


CHECKS = {
    "text-to-image": _an_image_of_512,
    "image-to-image": _an_image,
    "image-to-video": _a_video,
    "upscale": _an_image_four_times_as_large,
    "audio-to-text": _text_with_chunks,
    "segment-anything-2": _masks,
    "llm": _a_chat_answer,
    "image-to-text": _text,
    "text-to-speech": _speech,
}
