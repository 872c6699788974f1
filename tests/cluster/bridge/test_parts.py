"""The parts of a bridge together: a changed aiModels.json reaches both doors everywhere."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from cluster.ai_models import ModelKey
from cluster.ai_models_watch import AIModelsWatch
from cluster.backends.containers import Containers
from cluster.bridge.deadlines import Deadlines
from cluster.bridge.inputs import Inputs
from cluster.bridge.journal import open_journal
from cluster.bridge.parts import Parts
from cluster.bridge.results import Delivery
from cluster.bridge_settings import BridgeSettings, Orchestrator, Register
from cluster.loopback import LoopbackOrchestrator
from tests.cluster.bridge.conftest import SECRET, address
from tests.cluster.external.runner import IMAGES, LLM, Runner, runner
from tests.cluster.external.test_health import until
from tests.free_ports import free_port

PRICE = {"price": 0.02, "currency": "usd", "unit": "hour"}


def write(file: Path, container: Runner, keys: Iterable[ModelKey]) -> None:
    entries: dict[ModelKey, dict[str, Any]] = {
        key: {**key._asdict(), "warm": True, "url": container.url} for key in (IMAGES, LLM)
    }
    entries[LLM]["ray"] = {"live_runner_price": PRICE}
    file.write_text(json.dumps([entries[key] for key in keys]))


@contextlib.asynccontextmanager
async def working(
    file: Path, orchestrators: Sequence[LoopbackOrchestrator]
) -> AsyncIterator[tuple[AIModelsWatch, Parts]]:
    port = free_port()
    addresses = [address(each) for each in orchestrators]
    settings = BridgeSettings(
        ai_models=str(file),
        ray_address="nowhere",
        orchestrators=tuple(Orchestrator(address=each) for each in addresses),
        orch_secret=SecretStr(SECRET),
        advertise_version="0.9.1",
        deadlines=Deadlines(default_s=60.0),
        grace_s=10.0,
        state_listen=None,
        state_dir=file.parent,
        register=Register.BOTH,
        runner_listen=("127.0.0.1", port),
        runner_url=f"http://127.0.0.1:{port}",
    )
    watch, stop = AIModelsWatch(str(file)), asyncio.Event()
    with contextlib.closing(open_journal(file.parent, addresses=addresses)) as journal:
        async with (
            Inputs() as inputs,
            Delivery(secret=settings.orch_secret) as delivery,
            Containers(interval_s=0.02) as containers,
        ):
            parts = Parts(
                settings,
                watch=watch,
                journal=journal,
                inputs=inputs,
                delivery=delivery,
                containers=containers,
            )
            parts.take()
            async with parts.door_open() as doors:
                task = asyncio.create_task(
                    parts.bridge.run(
                        registrations=parts.registrations,
                        doors=doors,
                        snapshots=parts.capacity.snapshots(),
                        stop=stop,
                    )
                )
                try:
                    yield watch, parts
                finally:
                    stop.set()
                    await task


def prices(orchestrator: LoopbackOrchestrator) -> dict[str, Any]:
    """Of every live runner, hidden ones too."""
    runners = orchestrator.live_runners._runners.values()
    return {each.told.app: each.told.price_info for each in runners}


def as_worker(orchestrator: LoopbackOrchestrator) -> set[str]:
    return {"/".join(key) for worker in orchestrator.workers for key in worker.slots}


async def test_a_changed_file_reaches_both_doors_of_every_orchestrator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No Ray: all models are at a url.
    monkeypatch.setattr("cluster.serve_client.model_status", lambda _: {})
    file = tmp_path / "aiModels.json"
    wanted = {"/".join(IMAGES): None, "/".join(LLM): PRICE}
    async with (
        runner() as container,
        LoopbackOrchestrator(secret=SECRET) as first,
        LoopbackOrchestrator(secret=SECRET) as second,
    ):
        write(file, container, (IMAGES, LLM))
        async with working(file, (first, second)) as (watch, parts):
            for keys in ((IMAGES, LLM), (IMAGES,), (IMAGES, LLM)):
                write(file, container, keys)
                if watch.look(again=True):
                    parts.take()
                known = {app: wanted[app] for app in map("/".join, keys)}
                for one in (first, second):
                    await until(lambda: prices(one) == known)  # noqa: B023
                    await until(lambda: as_worker(one) == known.keys())  # noqa: B023
