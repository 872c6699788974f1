"""Fake models on a real Serve whose Ray counts four GPUs: who gets which, and who gives way."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from cluster import serve_client
from cluster.ai_models import AIModel, ModelKey, load_ai_models
from cluster.capacity import ModelStatus
from cluster.placement import place
from cluster.serve_config import app_name, serve_config
from cluster.supply import supply
from tests.e2e.conftest import ray_cluster
from tests.e2e.programs import PATIENCE_S
from tests.fake_model import Place

NEVER_S = 1e6
SUSTAINED_S = 5.0
"""More than a single job is reported for."""

ENTRIES: dict[str, dict[str, Any]] = {
    "org/two": {"warm": True, "capacity": 2, "ray": {"max_replicas": 2}},
    "org/half": {"warm": True, "capacity": 1, "ray": {"num_gpus": 0.5, "max_replicas": 2}},
    "org/lacking": {"warm": True, "capacity": 1, "ray": {"num_gpus": 2}},
    "org/first": {"warm": False},
    "org/second": {"warm": False},
}
IDLE_S = {"org/half": NEVER_S, "org/first": NEVER_S, "org/second": 1.0}


@dataclass(frozen=True, kw_only=True)
class Models:
    """The models, as far as they fit on the cluster."""

    models: tuple[AIModel, ...]

    def deploy(self, resources: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
        """Serves what fits on such machines; returns what is said of the rest."""
        placement = place(self.models, supply=supply(resources, []))
        config = serve_config(placement, models_dir=Path("/nowhere"), gpus=True)
        for application in config["applications"]:
            application["import_path"] = "tests.fake_model:build"
            scaling = application["deployments"][0].get("autoscaling_config")
            if scaling:
                idle_s = IDLE_S[application["args"]["model_id"]]
                scaling["policy"]["policy_kwargs"] |= {"sustained_s": SUSTAINED_S, "idle_s": idle_s}
        serve_client.deploy(config)
        return tuple(map(str, placement.lacking))

    def status(self, name: str) -> ModelStatus:
        return serve_client.model_status(self.models)[key(name)]

    def until(self, name: str, running: int) -> None:
        """Waits for so many replicas of a model."""
        _until(lambda: self.status(name).running == running)

    def places(self, name: str, *, at_once: int = 1) -> set[Place]:
        """Where some jobs at a time are run."""
        handle: DeploymentHandle[Place] = serve.get_app_handle(app_name(key(name)))
        jobs = [handle.run.remote(0.3) for _ in range(at_once)]
        return {job.result(timeout_s=PATIENCE_S) for job in jobs}


def key(name: str) -> ModelKey:
    return ModelKey("text-to-image", name)


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture(scope="module")
def on_gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    """Four GPUs: two for one model, half of one for another, and one for two cold ones."""
    file = tmp_path_factory.mktemp("gpus") / "aiModels.json"
    file.write_text(
        json.dumps(
            [
                {"pipeline": "text-to-image", "model_id": name, **entry}
                for name, entry in ENTRIES.items()
            ]
        )
    )
    models = load_ai_models(file).models
    with ray_cluster(gpus=4) as cluster:
        serve_client.connect(cluster.address)
        try:
            on_gpus = Models(models=models)
            (lacking,) = on_gpus.deploy(serve_client.node_resources())
            assert lacking.startswith("entry 3 (text-to-image org/lacking) lacks 2 GPUs")
            yield on_gpus
        finally:
            # Serve as well, or this process would take its controller for another cluster's.
            serve.shutdown()  # type: ignore[no-untyped-call]
            ray.shutdown()


def test_warm_replicas_have_cards_of_their_own(on_gpus: Models) -> None:
    on_gpus.until("org/two", 2)
    on_gpus.until("org/half", 1)
    two, half = on_gpus.places("org/two", at_once=8), on_gpus.places("org/half")
    cards = [place.gpus for place in (*two, *half)]
    assert len(cards) == 3
    assert set(cards) < set("0123")


def test_what_does_not_fit_stops_nobody(on_gpus: Models) -> None:
    on_gpus.until("org/two", 2)
    status = serve_client.model_status(on_gpus.models)
    assert status.keys() == {key(name) for name in ENTRIES} - {key("org/lacking")}


def test_a_killed_replica_is_loaded_again_on_a_card_of_its_own(on_gpus: Models) -> None:
    on_gpus.until("org/two", 2)
    before = on_gpus.places("org/two", at_once=8)
    victim = next(iter(before))
    os.kill(victim.pid, signal.SIGKILL)
    _until(lambda: on_gpus.status("org/two").running < 2)
    on_gpus.until("org/two", 2)
    after = on_gpus.places("org/two", at_once=8)
    assert victim not in after
    assert len(after) == len({place.gpus for place in after}) == 2
