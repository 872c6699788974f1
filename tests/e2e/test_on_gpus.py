"""Fake models on a real Serve whose Ray counts two machines of two GPUs: who gets which, and when.

The tests stand in the order of a cluster's life; each leaves the cluster as it found it.
"""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from cluster import ray_cluster, serve_client
from cluster.ai_models import AIModel, ModelKey, load_ai_models
from cluster.capacity import capacity_of
from cluster.placement import place
from cluster.replica_gpus import gpus_by_model
from cluster.serve_config import app_name, serve_config
from cluster.supply import supply
from deployments.hardware import GPU
from tests.e2e.conftest import running_ray
from tests.e2e.programs import PATIENCE_S
from tests.fake_model import Place, place_of

LOOK_BACK_S = 1.0
REPORT_S = 0.5
SUSTAINED_S = 4.0
IDLE_S = 1.0

ENTRIES: dict[str, dict[str, Any]] = {
    "org/half": {"warm": True, "capacity": 2, "ray": {"num_gpus": 0.5, "max_replicas": 4}},
    "org/two": {"warm": True, "capacity": 1, "ray": {"num_gpus": 2}},
    "org/lacking": {"warm": True, "capacity": 1, "ray": {"num_gpus": 4}},
    "org/first": {"warm": False},
    "org/second": {"warm": False},
}
NEVER_S = 1e6
IDLE_S_OF = {"org/first": NEVER_S}
"""It leaves its card only to somebody who waits."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """The models of the file, and those of them that are deployed."""

    models: tuple[AIModel, ...]

    def deploy(self, *names: str) -> tuple[str, ...]:
        """Serves those of some entries that fit; returns what is said of the rest."""
        models = [model for model in self.models if model.model_id in names]
        placement = place(models, supply=supply(ray_cluster.node_resources(), []))
        config = serve_config(placement, models_dir=Path("/nowhere"), gpus=True)
        for application in config["applications"]:
            application["import_path"] = "tests.fake_model:build"
            (deployment,) = application["deployments"]
            scaling = deployment["autoscaling_config"]
            scaling |= {"look_back_period_s": LOOK_BACK_S, "metrics_interval_s": REPORT_S}
            scaling["policy"]["policy_kwargs"] |= {
                "sustained_s": SUSTAINED_S,
                "idle_s": IDLE_S_OF.get(application["args"]["model_id"], IDLE_S),
            }
        serve_client.deploy(config)
        return tuple(map(str, placement.lacking))

    def running(self, name: str) -> int:
        """The number of a model's replicas."""
        status = serve_client.model_status(self.models).get(key(name))
        return status.running if status else 0

    def wanted(self, name: str) -> int:
        """How many the policy wants."""
        application = serve_client.details()["applications"][app_name(key(name))]
        (deployment,) = application["deployments"].values()
        return int(deployment["target_num_replicas"])

    def until(self, name: str, running: int) -> None:
        """Waits for so many replicas of a model."""
        _until(lambda: self.running(name) == running)

    def places(self, name: str) -> list[Place]:
        """Where each replica of a model sits."""
        status = serve_client.model_status(self.models)[key(name)]
        actors = [ray.get_actor(name, namespace="serve") for name, _ in status.replicas]
        found: list[Place] = ray.get([actor.__ray_call__.remote(place_of) for actor in actors])
        return found

    def work(self, name: str, *, at_once: int, seconds: float) -> None:
        """Has some jobs done."""
        handle: DeploymentHandle[None] = serve.get_app_handle(app_name(key(name)))
        for job in [handle.run.remote(seconds) for _ in range(at_once)]:
            job.result(timeout_s=PATIENCE_S)

    def advertised(self) -> dict[str, int]:
        """The slots that an orchestrator is told of while nobody works."""
        capacity = capacity_of(self.models, serve_client.model_status(self.models))
        return {key.model_id: model.slots for key, model in capacity.models.items()}


def key(name: str) -> ModelKey:
    return ModelKey("text-to-image", name)


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def on_gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    """First the one model of which replicas could be spread over the machines; then all."""
    file = tmp_path_factory.mktemp("gpus") / "aiModels.json"
    file.write_text(
        json.dumps(
            [
                {"pipeline": "text-to-image", "model_id": name, **entry}
                for name, entry in ENTRIES.items()
            ]
        )
    )
    on_gpus = Models(models=load_ai_models(file).models)
    with running_ray(gpus=(2, 2)) as cluster:
        ray_cluster.connect(cluster.address)
        try:
            on_gpus.deploy("org/half")
            on_gpus.until("org/half", 2)
            yield on_gpus
        finally:
            # Serve as well, or this process would take its controller for another cluster's.
            serve.shutdown()  # type: ignore[no-untyped-call]
            ray.shutdown()


def test_fractions_share_a_card_and_leave_a_machine_to_a_larger_model(on_gpus: Models) -> None:
    halves = on_gpus.places("org/half")
    assert len({(place.node, place.gpus) for place in halves}) == 1
    # A changed file, with other bounds for the first model: what runs is not touched.
    (lacking,) = on_gpus.deploy(*ENTRIES)
    assert lacking.startswith("entry 3 (text-to-image org/lacking) lacks 4 GPUs, 4 on one machine")
    on_gpus.until("org/two", 1)
    (two,) = on_gpus.places("org/two")
    assert sorted(two.gpus.split(",")) == ["0", "1"]
    assert two.node != halves[0].node
    assert set(on_gpus.places("org/half")) == set(halves)
    assert on_gpus.advertised() == {"org/half": 2, "org/two": 1, "org/first": 1, "org/second": 1}


def test_a_killed_replica_is_loaded_again_on_its_card(on_gpus: Models) -> None:
    before = on_gpus.places("org/half")
    os.kill(before[0].pid, signal.SIGKILL)
    _until(lambda: on_gpus.running("org/half") < 2)
    on_gpus.until("org/half", 2)
    after = on_gpus.places("org/half")
    assert before[0] not in after
    assert before[1] in after
    assert len({(place.node, place.gpus) for place in after}) == 1


def test_load_that_lasts_adds_a_replica_and_a_burst_does_not(on_gpus: Models) -> None:
    on_gpus.work("org/half", at_once=20, seconds=0.05)
    assert on_gpus.wanted("org/half") == 2

    def has_grown() -> bool:
        on_gpus.work("org/half", at_once=8, seconds=0.1)
        return on_gpus.running("org/half") > 2

    _until(has_grown)
    places = on_gpus.places("org/half")
    cards = Counter((place.node, place.gpus) for place in places)
    assert sorted(cards.values()) == [1, 2], "one card is full, the other the only one left"
    on_gpus.until("org/half", 2)
    assert on_gpus.wanted("org/half") == 2


def test_cold_models_take_turns_on_one_card(on_gpus: Models) -> None:
    on_gpus.work("org/first", at_once=1, seconds=0)
    (first,) = on_gpus.places("org/first")
    on_gpus.work("org/second", at_once=1, seconds=0)
    assert on_gpus.running("org/first") == 0, "it gave way"
    (second,) = on_gpus.places("org/second")
    assert (first.node, first.gpus) == (second.node, second.gpus)
    on_gpus.until("org/second", 0)
    assert on_gpus.running("org/half") == 2
    assert on_gpus.running("org/two") == 1


def test_hardware_is_the_cards_that_hold_the_model(on_gpus: Models) -> None:
    def read(ids: Sequence[str]) -> dict[str, GPU]:
        return {
            card: GPU(id=card, name="", major=1, minor=0, memory_free_bytes=1, memory_total_bytes=2)
            for card in ids
        }

    found = gpus_by_model(serve_client.model_status(on_gpus.models), read=read)
    assert [gpu.id for gpu in found[key("org/two")]] == ["0", "1"]
    assert [gpu.id for gpu in found[key("org/half")]] == [on_gpus.places("org/half")[0].gpus]
    assert found[key("org/first")] == []
