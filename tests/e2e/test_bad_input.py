"""Bad input over the whole path: refused with the reason, no replica dies, the next job works.

Jobs come from an orchestrator in this process, past its gateway, which would refuse some of them
itself. Bridge and replicas are the usual processes; the files are on a server of the test.
"""

import asyncio
import json
import re
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from cluster.loopback import LoopbackOrchestrator, WorkerError
from deployments.registry import PIPELINES
from tests.deployments.sounds import silent_film, sound_file, tone
from tests.e2e.conftest import SECRET, TINY, Deployed
from tests.e2e.programs import livepeer_ray
from tests.e2e.test_pipelines import picture

pytestmark = pytest.mark.asyncio(loop_scope="module")

ACCEPTED = "accepted"
MEGABYTE = "word " * 200_000
LARGE_BYTES = 300_000_000


def bomb(side: int) -> bytes:
    """A correct PNG of some kilobytes: a black square."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes((1 + side // 8) * side)))
    return b"\x89PNG\r\n\x1a\n" + header + rows + chunk(b"IEND", b"")


FILES = {
    "image": picture(64, 64),
    "audio": sound_file(tone(1)),
    "empty": b"",
    "text": b"this is neither an image nor a sound",
    "truncated-image": picture(64, 64)[:150],
    "truncated-audio": sound_file(tone(1), kind="mp4", codec="aac")[:2_000],
    "bomb": bomb(16_000),
    "silent-film": silent_film(),
}
"""What the file server has, by name."""

NOT_READABLE = {
    "image": {
        "empty": "image: ",
        "text": "image: the file is not an image that can be read",
        "truncated-image": "image: the file is broken",
        "bomb": "image: 16000x16000 pixels are too many",
        "audio": "image: the file is not an image that can be read",
    },
    "audio": {
        "empty": "audio: the file is not audio that can be read",
        "text": "audio: the file is not audio that can be read",
        "truncated-audio": "audio: the file is not audio that can be read",
        "image": "audio: the file has no audio stream",
        "silent-film": "audio: the file has no audio stream",
    },
}
"""By the field that a pipeline's file is in: files, and how the answer's reason begins."""

GOOD: dict[str, dict[str, Any]] = {
    "text-to-image": {"model_id": TINY, "prompt": "a bear", "width": 64, "height": 64},
    "image-to-image": {"prompt": "a bear", "num_inference_steps": 2},
    "image-to-video": {"width": 128, "height": 64, "num_inference_steps": 1},
    "upscale": {"prompt": "a bear", "num_inference_steps": 1},
    "audio-to-text": {"metadata": '{"duration": '},
    "segment-anything-2": {"box": "[8, 8, 40, 30]"},
    "llm": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4},
    "image-to-text": {},
    "text-to-speech": {"text": "One."},
}

Bad = tuple[str, dict[str, Any]]
"""How the answer's reason begins, and what of a good request is changed for it."""

SEEDS: list[Bad] = [
    ("seed: ", {"seed": seed}) for seed in (2**63, -(2**63) - 1, 10**400, "many", 0.5)
]
STEPS: list[Bad] = [
    ("num_inference_steps: ", {"num_inference_steps": steps}) for steps in (0, -1, 10**9)
]
WRONG_TEXTS: list[Any] = [MEGABYTE, "\ud800", 5, {}]
PROMPTS: list[Bad] = [("prompt: ", {"prompt": text}) for text in WRONG_TEXTS]
LORAS: list[Bad] = [
    ("loras: no/such-lora is not available", {"loras": '{"no/such-lora": 1.0}'}),
    (r"loras: \.\./\.\. is not available", {"loras": '{"../..": 1.0}'}),
    ("loras: not JSON", {"loras": "{no json"}),
    ("loras: must be a JSON object", {"loras": "[1]"}),
    ("loras: the weight of a/b", {"loras": '{"a/b": -1}'}),
    ("loras: ", {"loras": MEGABYTE}),
]

BAD: dict[str, list[Bad]] = {
    "text-to-image": [
        *(*SEEDS, *STEPS, *PROMPTS, *LORAS),
        ("prompt: ", {"prompt": ""}),
        ("negative_prompt: ", {"negative_prompt": MEGABYTE}),
        ("width: ", {"width": 100}),
        ("height: ", {"height": 10**9}),
        ("guidance_scale: ", {"guidance_scale": -1}),
        ("guidance_scale: ", {"guidance_scale": float("nan")}),
        ("num_images_per_prompt: ", {"num_images_per_prompt": 10**9}),
        ("model_id: ", {"model_id": 5}),
    ],
    "image-to-image": [
        *(*SEEDS, *STEPS, *PROMPTS, *LORAS),
        ("strength: ", {"strength": 0}),
        ("image_guidance_scale: ", {"image_guidance_scale": 1e300}),
    ],
    "image-to-video": [
        *(*SEEDS, *STEPS),
        ("fps: ", {"fps": 0}),
        ("motion_bucket_id: ", {"motion_bucket_id": -1}),
        ("noise_aug_strength: ", {"noise_aug_strength": -0.1}),
        ("width and height: ", {"width": 2048, "height": 2048}),
    ],
    "upscale": [*SEEDS, *STEPS, *PROMPTS],
    "audio-to-text": [
        ("return_timestamps: ", {"return_timestamps": "often"}),
        ("return_timestamps: ", {"return_timestamps": MEGABYTE}),
    ],
    "segment-anything-2": [
        *(
            (f"{name}: want a JSON array", {name: text})
            for name in ("point_coords", "point_labels", "box", "mask_input")
            for text in ("[no json", "{}", "[" * 50_000, '[["a", "b"]]', "[1e999]")
        ),
        ("point_labels: ", {"point_coords": "[[1, 2]]"}),
        ("point_coords: ", {"point_coords": MEGABYTE}),
    ],
    "llm": [
        ("messages: ", {"messages": []}),
        ("messages: ", {"messages": None}),
        (r"messages\.0\.role: ", {"messages": [{"role": "robot", "content": ""}]}),
        (r"messages\.0\.content: ", {"messages": [{"role": "user"}]}),
        (r"messages\.0\.content: ", {"messages": [{"role": "user", "content": "\ud800"}]}),
        ("messages: .*context", {"messages": [{"role": "user", "content": MEGABYTE}]}),
        ("messages.* characters", {"messages": [{"role": "user", "content": MEGABYTE + "."}]}),
        ("temperature: ", {"temperature": -1}),
        ("temperature: ", {"temperature": float("inf")}),
        ("top_k: ", {"top_k": 10**6}),
        ("top_k: ", {"top_k": 2**63, "stream": True}),
        ("top_k: ", {"top_k": -2}),
        ("top_p: ", {"top_p": 1.5}),
        ("max_tokens: ", {"max_tokens": 0}),
    ],
    "image-to-text": [*PROMPTS, ("prompt: ", {"prompt": "word " * 1_900})],
    "text-to-speech": [
        ("text: ", {"text": MEGABYTE}),
        ("text: ", {"text": ""}),
        ("text: ", {"text": " \n"}),
        ("text: ", {"text": "\u2603"}),
    ],
}
"""By pipeline."""


@dataclass(frozen=True, kw_only=True)
class FileServer:
    """An object store, and how much of its large files was taken."""

    url: str
    sent_bytes: dict[str, int]

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator["FileServer"]:
        """A server with `FILES` and, of `LARGE_BYTES`, one that says so and one that does not."""
        sent_bytes: dict[str, int] = {}

        async def file(request: web.Request) -> web.Response:
            return web.Response(body=FILES[request.match_info["name"]])

        async def large(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            if request.path == "/large/declared":
                response.content_length = LARGE_BYTES
            await response.prepare(request)
            sent_bytes[request.path] = 0
            while sent_bytes[request.path] < LARGE_BYTES:
                try:
                    await response.write(bytes(1_000_000))
                except ConnectionResetError:
                    break
                sent_bytes[request.path] += 1_000_000
            return response

        app = web.Application()
        app.router.add_get("/{name}", file)
        app.router.add_get("/large/{kind}", large)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            port = runner.addresses[0][1]
            yield cls(url=f"http://127.0.0.1:{port}", sent_bytes=sent_bytes)
        finally:
            await runner.cleanup()


@dataclass(frozen=True, kw_only=True)
class Network:
    """Whoever sends jobs and gets their answers."""

    orchestrator: LoopbackOrchestrator
    files: FileServer

    async def send(self, pipeline: str, request: dict[str, Any], file: str = "") -> str:
        """Sends a job; the worker's words, or `ACCEPTED`."""
        field = PIPELINES[pipeline].file
        url = f"{self.files.url}/{file or field}" if field else ""
        return await self.send_raw(pipeline, json.dumps({"input_url": url, "request": request}))

    async def send_raw(self, pipeline: str, data: str | bytes) -> str:
        """The same with whatever data."""
        try:
            await self.orchestrator.send_job(
                worker=self.orchestrator.workers[-1],
                pipeline=pipeline,
                request_data=data.encode() if isinstance(data, str) else data,
            )
        except WorkerError as error:
            return str(error)
        return ACCEPTED


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def network(deployed: Deployed) -> AsyncIterator[Network]:
    """A network with a bridge that serves all pipelines."""
    async with FileServer.running() as files, LoopbackOrchestrator(secret=SECRET) as orchestrator:
        flags = (
            *("--orch-addr", orchestrator.url),
            *("--ray-address", deployed.ray.address),
            *("--ai-models", str(deployed.ai_models)),
        )
        async with livepeer_ray("bridge", *flags, secret=SECRET) as bridge:
            await orchestrator.wait_for_workers(
                lambda workers: any(
                    {pipeline for pipeline, _ in worker.slots} == set(PIPELINES)
                    for worker in workers
                )
            )
            yield Network(orchestrator=orchestrator, files=files)
            assert "Traceback" not in bridge.output
        assert orchestrator.faults == []


def refusal(pipeline: str, reason: str) -> str:
    return f"{pipeline} container returned 400: {reason}"


@pytest.mark.parametrize("pipeline", PIPELINES)
async def test_it_is_refused_with_the_reason_and_the_next_job_works(
    network: Network, deployed: Deployed, pipeline: str
) -> None:
    replicas = deployed.ray.working_replicas()
    wrong: list[tuple[object, str, str]] = []
    for reason, changes in BAD[pipeline]:
        said = await network.send(pipeline, {**GOOD[pipeline], **changes})
        if not re.match(refusal(pipeline, reason), said):
            wrong.append((list(changes), reason, said))
    for file, reason in NOT_READABLE.get(PIPELINES[pipeline].file, {}).items():
        said = await network.send(pipeline, GOOD[pipeline], file)
        if not re.match(refusal(pipeline, reason), said):
            wrong.append((file, reason, said))
    assert wrong == []
    assert await network.send(pipeline, GOOD[pipeline]) == ACCEPTED
    assert deployed.ray.working_replicas() == replicas


@pytest.mark.parametrize("pipeline", ["upscale", "audio-to-text"])
async def test_of_300_megabytes_no_more_is_read_than_shows_that_it_is_too_large(
    network: Network, pipeline: str
) -> None:
    bound = PIPELINES[pipeline].max_file_bytes
    reason = f"{PIPELINES[pipeline].file}: the file is larger than the {bound} bytes"
    for kind, at_most_bytes in (("declared", 0), ("undeclared", bound)):
        said = await network.send(pipeline, GOOD[pipeline], f"large/{kind}")
        assert said.startswith(refusal(pipeline, reason))
        # The sockets on the way hold a few megabytes.
        assert network.files.sent_bytes[f"/large/{kind}"] < at_most_bytes + 30_000_000
    assert await network.send(pipeline, GOOD[pipeline]) == ACCEPTED


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the job is not JSON"),
        (b"\xff\xfe{}", "the job is not JSON"),
        ("[" * 1_000_000, "the job is not JSON"),
        ("[]", "the job is not an object with a `request`"),
        ('{"request": []}', "the job is not an object with a `request`"),
        ('{"request": {}}', "input_url: must be given"),
        ('{"input_url": {}, "request": {}}', "input_url: must be given"),
        ('{"input_url": "file:///etc/passwd", "request": {}}', "input_url: want an http"),
        ('{"input_url": "http://[", "request": {}}', "input_url: want an http"),
    ],
    ids=range(9),
)
async def test_a_job_that_is_none(network: Network, data: str | bytes, reason: str) -> None:
    assert (await network.send_raw("upscale", data)).startswith(refusal("upscale", reason))


async def test_many_bad_jobs_at_once(network: Network, deployed: Deployed) -> None:
    replicas = deployed.ray.working_replicas()
    bad = {**GOOD["llm"], "top_k": 10**6, "stream": True}
    answers = await asyncio.gather(*(network.send("llm", bad) for _ in range(8)))
    assert {answer.split(": ")[1] for answer in answers} == {"top_k"}
    assert await network.send("llm", GOOD["llm"]) == ACCEPTED
    assert deployed.ray.working_replicas() == replicas
