"""One Ray cluster and one deployed set of models for all whole-path tests."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from tests.e2e.programs import BIN, PATIENCE_S, livepeer_ray

SECRET = "an orchestrator's secret"
PIPELINE = "text-to-image"
TINY = "livepeer-ray/tiny-sd"
SECOND = "livepeer-ray/tiny-sd-second"
BROKEN = "livepeer-ray/tiny-sd-broken"
MISSING = "livepeer-ray/never-downloaded"


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """A local Ray cluster."""

    address: str
    pid: int
    """Of the process that everything else of it descends from."""

    def replicas(self, model_id: str, pipeline: str = PIPELINE) -> set[int]:
        """The processes of a model's replicas, by the titles that Ray gives them."""
        title = f"ray::ServeReplica:{pipeline}--{model_id.replace('/', '--')}:"
        return {pid for pid, name in self._processes() if name.startswith(title)}

    def ingress(self) -> set[int]:
        """The process of the HTTP API."""
        title = "ray::ServeReplica:http-api:"
        return {pid for pid, name in self._processes() if name.startswith(title)}

    def working_replicas(self) -> set[int]:
        """The processes of all replicas but those that can never start."""
        failing = tuple(model_id.replace("/", "--") + ":" for model_id in (BROKEN, MISSING))
        return {
            pid
            for pid, name in self._processes()
            if name.startswith("ray::ServeReplica:") and "http-api" not in name
            if not any(part in name for part in failing)
        }

    def _processes(self) -> Iterator[tuple[int, str]]:
        for process in psutil.Process(self.pid).children(recursive=True):
            # Workers that Ray does not need any more end at any moment.
            with suppress(psutil.NoSuchProcess):
                yield process.pid, process.name()


@contextmanager
def running_ray(*, gpus: tuple[int, ...] = (0,)) -> Iterator[RayCluster]:
    """Runs a local Ray cluster of machines with so many GPUs each, numbers for its scheduler."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.local_ray", *map(str, gpus)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            # Serve kills a proxy that takes longer to start, and with it what deploys: on a busy
            # machine this took over 15 s.
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        },
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address, "the Ray cluster did not start"
    try:
        yield RayCluster(address=address, pid=process.pid)
    finally:
        process.communicate(timeout=60)


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Journals beside the tests' other files, and an HTTP API on a port of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        http = f"127.0.0.1:{listening.getsockname()[1]}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIVEPEER_RAY_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        patch.setenv("LIVEPEER_RAY_HTTP", http)
        yield


@pytest.fixture(scope="session")
def ray() -> Iterator[RayCluster]:
    """The cluster that all tests share."""
    with running_ray() as running:
        yield running


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """Models on Serve, deployed as the README says."""

    ray: RayCluster
    home: Path
    """An operator's home directory, with everything where go-livepeer keeps it."""

    @property
    def models_dir(self) -> Path:
        """The Hugging Face cache with the models."""
        return self.home / ".lpData/models"

    @property
    def ai_models(self) -> Path:
        """The aiModels.json that names them."""
        return self.home / ".lpData/aiModels.json"

    @property
    def http(self) -> str:
        """The url of the HTTP API."""
        return f"http://{os.environ['LIVEPEER_RAY_HTTP']}"

    def only(self, *model_ids: str) -> str:
        """An aiModels.json with some of the entries."""
        entries = json.loads(self.ai_models.read_text())
        some = self.models_dir / f"only-{'-'.join(model_ids).replace('/', '-')}.json"
        some.write_text(json.dumps([entry for entry in entries if entry["model_id"] in model_ids]))
        return str(some)


@pytest.fixture(scope="session")
def deployed(
    ray: RayCluster, tiny_models_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployed]:
    """All tiny models, one of them twice, one that is broken and one that is missing."""
    deployed = Deployed(ray=ray, home=tmp_path_factory.mktemp("home"))
    models_dir, ai_models = deployed.models_dir, deployed.ai_models
    models_dir.mkdir(parents=True)
    tiny = json.loads((tiny_models_dir / "aiModels.json").read_text())
    others = [entry for entry in tiny if entry["pipeline"] != PIPELINE]
    for entry in others:
        name = f"models--{entry['model_id'].replace('/', '--')}"
        shutil.copytree(tiny_models_dir / name, models_dir / name, symlinks=True)
    for model_id in (TINY, SECOND, BROKEN):
        source = tiny_models_dir / f"models--{TINY.replace('/', '--')}"
        target = models_dir / f"models--{model_id.replace('/', '--')}"
        shutil.copytree(source, target, symlinks=True)
    for config in models_dir.glob(f"models--{BROKEN.replace('/', '--')}/snapshots/*/unet/*.json"):
        config.unlink()
        config.write_text('{"_class_name": ')
    ai_models.write_text(
        json.dumps(
            [
                {
                    "pipeline": PIPELINE,
                    "model_id": model_id,
                    "warm": True,
                    "capacity": 2 if model_id == TINY else 1,
                }
                for model_id in (BROKEN, TINY, MISSING, SECOND)
            ]
            + others
        )
    )
    config_file = models_dir / "serve.yaml"
    with config_file.open("w") as file:
        subprocess.run(
            [
                BIN / "livepeer-ray",
                "serve-config",
                *("--ai-models", ai_models),
                *("--ai-models-dir", models_dir),
                *("--device", "cpu"),
            ],
            stdout=file,
            check=True,
        )
    with (models_dir / "serve-run.log").open("w") as log:
        serve_run = subprocess.Popen(
            [BIN / "serve", "run", config_file, "--address", ray.address],
            stdout=log,
            stderr=log,
            env={**os.environ, "RAY_AUTH_MODE": "token"},
        )
    yield deployed
    assert serve_run.poll() is None, (models_dir / "serve-run.log").read_text()
    # Not by SIGINT, at which `serve run` takes its applications down one by one: the whole
    # cluster ends next.
    serve_run.kill()
    serve_run.wait()


@dataclass(frozen=True, kw_only=True)
class Orchestrator:
    """A loopback orchestrator in a process of its own, seen through its port."""

    http: aiohttp.ClientSession
    address: str
    """`HOST:PORT`."""

    async def status(self) -> dict[str, Any]:
        """What it tells of itself."""
        async with self.http.get("/status") as response:
            document: dict[str, Any] = await response.json()
            return document

    async def advertises(self, expected: dict[str, int]) -> None:
        """Waits until exactly this is advertised: slots by model, over all workers."""
        slots: dict[str, int] = {}
        try:
            async with asyncio.timeout(PATIENCE_S):
                while (slots := await self._slots("capacity")) != expected:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{slots} is advertised, not {expected}") from None

    async def serves(self, pipelines: set[str]) -> None:
        """Waits until each of these has a slot."""
        advertised: set[str] = set()
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not pipelines <= (advertised := set((await self.status())["capacity"])):
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise AssertionError(f"{pipelines - advertised} never became ready") from None

    async def has_a_job_out(self) -> None:
        """Waits until a worker has a job."""
        async with asyncio.timeout(PATIENCE_S):
            while not any((await self._slots("in_use")).values()):
                await asyncio.sleep(0.02)

    async def has_no_worker(self) -> None:
        """Waits until no worker is connected."""
        async with asyncio.timeout(PATIENCE_S):
            while (await self.status())["workers"]:
                await asyncio.sleep(0.02)

    async def _slots(self, what: str) -> dict[str, int]:
        capacity = (await self.status())["capacity"].get(PIPELINE, {})
        return {model_id: slots[what] for model_id, slots in capacity.items()}


@asynccontextmanager
async def loopback_orchestrator(listen: str) -> AsyncIterator[Orchestrator]:
    """A loopback orchestrator; whatever a worker does wrong fails the test."""
    async with livepeer_ray("orchestrator", "--listen", listen, secret=SECRET) as process:
        line = await process.says("^orchestrator listening on https://")
        url = line.split()[3]
        connector = aiohttp.TCPConnector(ssl=False, limit=0)  # its certificate is seconds old
        async with aiohttp.ClientSession(url, connector=connector) as http:
            started = Orchestrator(http=http, address=url.removeprefix("https://"))
            yield started
            status = await started.status()
            assert (status["faults"], status["late"]) == ([], [])


@pytest.fixture
async def orchestrator() -> AsyncIterator[Orchestrator]:
    """One on a free port of this machine."""
    async with loopback_orchestrator("127.0.0.1:0") as started:
        yield started


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """The orchestrator's callers' side."""

    http: aiohttp.ClientSession

    async def text_to_image(self, **request: object) -> tuple[int, Any]:
        """Asks for images; status and document."""
        body = {
            "prompt": "a lighthouse",
            "model_id": TINY,
            "width": 128,
            "height": 64,
            "num_inference_steps": 2,
            "safety_check": False,
            **request,
        }
        async with self.http.post("/text-to-image", json=body) as response:
            return response.status, await response.json()

    async def download(self, url: str) -> bytes:
        """The bytes behind a result's url."""
        async with self.http.get(url) as response:
            assert response.status == 200
            return await response.read()


@pytest.fixture
def gateway(orchestrator: Orchestrator) -> Gateway:
    """A gateway's client."""
    return Gateway(http=orchestrator.http)
