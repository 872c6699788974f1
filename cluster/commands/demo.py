"""`livepeer-ray demo`: the whole path on this machine, with a tiny model.

Everything is what an operator runs, in processes of its own; only the model's weights are
random, so the pictures are noise, and the orchestrator is the one that ships for development.
"""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from cluster.errors import LivepeerRayError

PROMPTS = (
    {"prompt": "a lighthouse at dawn", "width": 512, "height": 512, "seed": 7},
    {"prompt": "a fox in the snow", "width": 768, "height": 512, "seed": 11},
    {"prompt": "a market street, rain", "width": 512, "height": 768, "seed": 42},
)
STEPS = 8
READY_TIMEOUT_S = 180.0


class DemoFailed(LivepeerRayError):
    """A part of the demo did not do what it should; the text says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One job of the demo, as the gateway's caller sees it."""

    prompt: str
    path: Path
    seed: int
    seconds: float
    task_id: str


def run(output: Path) -> int:
    """Runs the demo and returns the exit status."""
    output.mkdir(parents=True, exist_ok=True)
    # As at Ctrl-C, everything that was started is ended in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        asyncio.run(_demo(output))
    except (DemoFailed, aiohttp.ClientError, TimeoutError, OSError) as error:
        print(f"demo failed: {str(error) or type(error).__name__}", file=sys.stderr)
        return 1
    return 0


async def _demo(output: Path) -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="livepeer-ray-demo-") as scratch:
        models = Path(scratch)
        _say("writing a tiny model: random weights, so its pictures will be noise")
        await _finish("tiny-models", str(models), "--pipeline", "text-to-image")
        environment = {"LIVEPEER_RAY_ORCH_SECRET": secrets.token_hex(16)}
        async with _orchestrator(environment) as url, _worker(url, models, environment) as worker:
            connector = aiohttp.TCPConnector(ssl=False)  # the certificate is seconds old
            async with aiohttp.ClientSession(url, connector=connector) as gateway:
                await _ready(gateway, worker)
                _say(f"sending {len(PROMPTS)} prompts at once, as a gateway would")
                pictures = await asyncio.gather(
                    *(_picture(gateway, prompt, output) for prompt in PROMPTS)
                )
                await worker.answered(pictures)
    print()
    for picture in pictures:
        job = worker.jobs[picture.task_id]
        print(
            f"  {picture.path}  seed {picture.seed:<3} {_size(picture.path):>9}  "
            f"{picture.seconds:5.2f} s ({job['compute_s']:.2f} s in replica {job['replica']})  "
            f'"{picture.prompt}"'
        )
    print(f"\ndone in {time.monotonic() - began:.0f} s, everything is shut down again")


class _Worker:
    """The `livepeer-ray start` of the demo, and what its log says."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.jobs: dict[str, dict[str, Any]] = {}
        self._news = asyncio.Condition()

    async def read_log(self) -> None:
        """Shows the worker's log and keeps the job records that are in it."""
        if self.process.stderr is None:
            raise RuntimeError("the worker runs without a pipe")
        async for line in self.process.stderr:
            try:
                record = json.loads(line)
            except ValueError:
                print(f"  worker | {line.decode(errors='replace').rstrip()}", flush=True)
                continue
            print(f"  worker | {record['message']}", flush=True)
            if job := record.get("job"):
                async with self._news:
                    self.jobs[str(job["task_id"])] = job
                    self._news.notify_all()

    async def answered(self, pictures: list[Picture]) -> None:
        """Waits until the log tells of every picture."""
        wanted = {picture.task_id for picture in pictures}
        async with self._news, asyncio.timeout(10.0):
            await self._news.wait_for(lambda: wanted <= self.jobs.keys())


@contextlib.asynccontextmanager
async def _orchestrator(environment: dict[str, str]) -> AsyncIterator[str]:
    """A loopback orchestrator in a process; yields its url."""
    _say("starting a loopback orchestrator")
    process = await _start(
        "orchestrator", "--listen", "127.0.0.1:0", stdout=PIPE, environment=environment
    )
    try:
        if process.stdout is None:
            raise RuntimeError("the orchestrator runs without a pipe")
        line = (await process.stdout.readline()).decode().strip()
        if not line:
            raise DemoFailed("the loopback orchestrator did not start")
        print(f"  {line}", flush=True)
        yield next(word for word in line.split() if word.startswith("https://"))
    finally:
        await _end(process)


@contextlib.asynccontextmanager
async def _worker(url: str, models: Path, environment: dict[str, str]) -> AsyncIterator[_Worker]:
    """`livepeer-ray start` in a process, on a Ray cluster of its own."""
    _say("starting the worker: a local Ray cluster, the models on Serve, the bridge")
    process = await _start(
        "start",
        *("--ray-address", "local"),
        *("--orch-addr", url),
        *("--ai-models", str(models / "aiModels.json")),
        *("--ai-models-dir", str(models)),
        "--log-json",
        stderr=PIPE,
        environment=environment,
    )
    worker = _Worker(process)
    reading = asyncio.create_task(worker.read_log())
    try:
        yield worker
    finally:
        _say("shutting down")
        await _end(process)
        await reading


async def _ready(gateway: aiohttp.ClientSession, worker: _Worker) -> None:
    """Waits until the orchestrator knows of a slot for every prompt."""
    ended = asyncio.create_task(worker.process.wait())
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            while True:
                async with gateway.get("/status") as response:
                    status = await response.json()
                if _slots(status["capacity"]) >= len(PROMPTS):
                    return
                done, _ = await asyncio.wait({ended}, timeout=0.5)
                if done:
                    raise DemoFailed(f"the worker ended with status {ended.result()}")
    except TimeoutError:
        raise DemoFailed(f"not enough capacity within {READY_TIMEOUT_S:.0f} s") from None
    finally:
        ended.cancel()


def _slots(capacity: dict[str, dict[str, dict[str, int]]]) -> int:
    return sum(model["capacity"] for models in capacity.values() for model in models.values())


async def _picture(gateway: aiohttp.ClientSession, prompt: dict[str, Any], output: Path) -> Picture:
    began = time.monotonic()
    body = {**prompt, "num_inference_steps": STEPS, "safety_check": False}
    async with gateway.post("/text-to-image", json=body) as response:
        if response.status != 200:
            raise DemoFailed(f"a job got {response.status}: {await response.text()}")
        document = await response.json()
        task_id = response.headers["Livepeer-Task-Id"]
    image = document["images"][0]
    async with gateway.get(image["url"]) as response:
        data = await response.read()
    seconds = time.monotonic() - began
    path = output / f"text-to-image-{image['seed']}.png"
    path.write_bytes(data)
    return Picture(
        prompt=prompt["prompt"], path=path, seed=image["seed"], seconds=seconds, task_id=task_id
    )


def _size(path: Path) -> str:
    """Width x height from a PNG's header, which is where the file itself says it."""
    header = path.read_bytes()[16:24]
    return f"{int.from_bytes(header[:4])}x{int.from_bytes(header[4:])}"


async def _finish(*arguments: str) -> None:
    process = await _start(*arguments)
    if await process.wait() != 0:
        raise DemoFailed(f"livepeer-ray {arguments[0]} ended with status {process.returncode}")


async def _start(
    *arguments: str,
    stdout: int | None = None,
    stderr: int | None = None,
    environment: dict[str, str] | None = None,
) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "cluster.cli"),
        *arguments,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **(environment or {})},
        # Ctrl-C reaches the demo alone, which then ends its children in order.
        start_new_session=True,
    )


async def _end(process: Process) -> None:
    if process.returncode is None:
        process.terminate()
        await process.wait()


def _say(text: str) -> None:
    print(f"\n{text}", flush=True)
