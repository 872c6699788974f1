"""What is deployed when the file, the GPUs or Serve change. On Ray itself: tests/e2e."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster import ray_cluster, serve_client
from cluster.ai_models import AIModel, RayOptions
from cluster.capacity import ModelStatus
from cluster.commands import apply
from cluster.errors import ClusterUnreachable, ConfigError
from cluster.http_api import HTTPSettings
from cluster.reconcile import LEAVE_S, Reconciler
from cluster.serve_config import app_name
from cluster.settings import Device
from deployments.ingress.config import APP, Token

HTTP = HTTPSettings(host="127.0.0.1", port=8000)


class Cluster:
    """Stands for Ray and Serve, whose nodes and failures a test cannot otherwise time."""

    def __init__(self) -> None:
        self.gpus = 0.0
        self.applications: dict[str, Any] = {}
        self.failed: set[str] = set()
        self.deployed: list[list[str]] = []
        self.now = 0.0
        self.http_in_the_way = ""
        self.config: Mapping[str, Any] = {}

    def node_resources(self) -> list[dict[str, float]]:
        return [{"CPU": 8.0, "GPU": self.gpus}]

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": "node"}]

    def details(self) -> dict[str, Any]:
        return {"applications": self.applications}

    def deploy(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.deployed.append([application["name"] for application in config["applications"]])
        self.applications = {
            application["name"]: {"deployed_app_config": application, "deployments": {}}
            for application in config["applications"]
        }

    def check_http(self, http: HTTPSettings) -> None:
        assert http == HTTP
        if self.http_in_the_way:
            raise ConfigError(self.http_in_the_way)

    def model_status(self, models: tuple[AIModel, ...]) -> dict[Any, ModelStatus]:
        return {
            model.key: ModelStatus(state="DEPLOY_FAILED" if name in self.failed else "RUNNING")
            for model in models
            if (name := app_name(model.key)) in self.applications
        }


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()
    for module, names in (
        (ray_cluster, ("node_resources", "nodes")),
        (serve_client, ("details", "deploy", "check_http", "model_status")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, getattr(cluster, name))
    return cluster


def reconciler(cluster: Cluster, device: Device = Device.CPU) -> Reconciler:
    return Reconciler(models_dir=Path("/models"), device=device, clock=lambda: cluster.now)


def model(name: str, **ray: Any) -> AIModel:
    return AIModel(pipeline="llm", model_id=f"org/{name}", warm=True, ray=RayOptions(**ray))


A, B, C = model("a"), model("b"), model("c")
NAME_A, NAME_B, NAME_C = (app_name(one.key) for one in (A, B, C))


def test_only_a_difference_is_deployed(cluster: Cluster) -> None:
    keeper = reconciler(cluster)
    assert keeper.step([A])
    assert not keeper.step([A])
    assert keeper.step([A, B])
    assert keeper.step([A, model("b", max_ongoing_requests=4)])
    assert cluster.deployed == [[NAME_A], [NAME_A, NAME_B], [NAME_A, NAME_B]]


def test_what_somebody_removed_comes_back(cluster: Cluster) -> None:
    keeper = reconciler(cluster)
    keeper.step([A, B])
    del cluster.applications[NAME_A]
    assert keeper.step([A, B])
    assert not keeper.step([A, B])


def test_a_model_that_leaves_stays_until_it_is_advertised_no_more(cluster: Cluster) -> None:
    keeper = reconciler(cluster)
    keeper.step([A, B])
    before = cluster.applications[NAME_B]
    keeper.step([A, C])
    assert cluster.deployed[-1] == [NAME_A, NAME_C, NAME_B]
    assert cluster.applications[NAME_B] == before
    assert keeper.waiting
    cluster.now += LEAVE_S / 2
    assert not keeper.step([A, C])
    cluster.now += LEAVE_S / 2
    assert keeper.step([A, C])
    assert cluster.deployed[-1] == [NAME_A, NAME_C]
    # Serve shows it while its jobs finish.
    cluster.applications[NAME_B] = before
    assert not keeper.step([A, C])
    del cluster.applications[NAME_B]
    assert not keeper.step([A, C])
    assert not keeper.waiting


def test_a_model_that_comes_back_in_time_was_never_away(cluster: Cluster) -> None:
    keeper = reconciler(cluster)
    keeper.step([A, B])
    keeper.step([A])
    cluster.now += LEAVE_S / 2
    keeper.step([A, B])
    cluster.now += LEAVE_S
    assert not keeper.step([A, B])
    assert all(NAME_B in names for names in cluster.deployed)


def test_a_new_process_lets_them_leave_in_the_same_order(cluster: Cluster) -> None:
    reconciler(cluster).step([A, B])
    keeper = reconciler(cluster)
    keeper.step([A])
    assert cluster.deployed[-1] == [NAME_A, NAME_B]
    cluster.now += LEAVE_S
    keeper.step([A])
    assert cluster.deployed[-1] == [NAME_A]


def test_what_serve_gave_up_is_removed_and_deployed_anew(cluster: Cluster) -> None:
    keeper = reconciler(cluster)
    keeper.step([A, B])
    cluster.failed = {NAME_B}
    assert not keeper.step([A, B]), "not unasked"
    gone = cluster.applications[NAME_B]
    assert keeper.step([A, B], retry_failed=True)
    assert cluster.deployed[-1] == [NAME_A]
    cluster.applications[NAME_B] = gone
    assert not keeper.step([A, B]), "it is still going"
    del cluster.applications[NAME_B]
    assert keeper.step([A, B])
    assert cluster.deployed[-1] == [NAME_A, NAME_B]
    assert not keeper.waiting


def test_models_follow_the_gpus_and_what_lacks_is_said_when_it_changes(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cluster.gpus = 1
    keeper = reconciler(cluster, Device.GPU)
    keeper.step([A, B])
    keeper.step([A, B])
    assert cluster.deployed == [[NAME_A]]
    assert caplog.text.count("(llm org/b) lacks 1 GPU") == 1
    cluster.gpus = 2
    keeper.step([A, B])
    assert cluster.deployed[-1] == [NAME_A, NAME_B]
    assert "every entry has the GPUs that it wants" in caplog.text
    cluster.gpus = 1
    keeper.step([A, B])
    assert caplog.text.count("(llm org/b) lacks 1 GPU") == 2
    assert NAME_B in cluster.deployed[-1], "advertised until a moment ago"


def test_a_lost_machine_is_first_left_to_serve(cluster: Cluster) -> None:
    def seen_by_serve(*nodes: str | None) -> None:
        replicas = [{"node_id": node} for node in nodes]
        cluster.applications[NAME_A]["deployments"] = {"model": {"replicas": replicas}}

    two = replace(A, capacity=2)
    cluster.gpus = 2
    keeper = reconciler(cluster, Device.GPU)
    keeper.step([two])
    cluster.gpus = 1
    seen_by_serve("node", "lost")
    assert not keeper.step([two])
    assert keeper.waiting
    seen_by_serve("node", None)
    assert keeper.step([two])
    assert not keeper.waiting


def test_auto_takes_gpus_when_they_come_and_does_not_fall_back(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    def asks_for() -> float:
        (deployment,) = cluster.applications[NAME_A]["deployed_app_config"]["deployments"]
        return float(deployment["ray_actor_options"]["num_gpus"])

    keeper = reconciler(cluster, Device.AUTO)
    keeper.step([A])
    keeper.step([A])
    assert asks_for() == 0
    assert caplog.text.count("models run on its CPUs until one joins") == 1
    cluster.gpus = 1
    keeper.step([A])
    assert asks_for() == 1
    cluster.gpus = 0
    keeper.step([A])
    assert asks_for() == 1


def test_where_gpus_are_wanted_and_none_is_there_replicas_wait(cluster: Cluster) -> None:
    keeper = reconciler(cluster, Device.GPU)
    keeper.step([A, B])
    assert cluster.deployed == [[NAME_A, NAME_B]]


def test_while_all_gpus_are_away_nothing_changes(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cluster.gpus = 1
    keeper = reconciler(cluster, Device.GPU)
    keeper.step([A, B])
    for gpus in (0, 0, 1, 0):
        cluster.gpus = gpus
        assert not keeper.step([A, B]), "B could take the card before A when it comes back"
    assert caplog.text.count("lacks 1 GPU") == 1
    assert "every entry" not in caplog.text
    assert caplog.text.count("the cluster has no GPU any more") == 2


@pytest.mark.parametrize("device", [Device.AUTO, Device.GPU])
def test_who_comes_while_all_gpus_are_away_waits_for_them(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, device: Device
) -> None:
    cluster.gpus = 1
    reconciler(cluster, device).step([A, B])
    cluster.gpus = 0
    keeper = reconciler(cluster, device)
    assert not keeper.step([A, B])
    assert not keeper.step([A, B])
    assert keeper.held
    assert cluster.deployed == [[NAME_A]], "and neither on CPUs nor B"
    assert caplog.text.count("the cluster has no GPU any more") == 1
    cluster.gpus = 2
    keeper.step([A, B])
    assert not keeper.held
    assert cluster.deployed[-1] == [NAME_A, NAME_B]


def test_apply_says_that_it_did_nothing_while_all_gpus_are_away(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.gpus = 1
    reconciler(cluster, Device.GPU).step([A])
    cluster.gpus = 0
    monkeypatch.setattr(ray_cluster, "connect", lambda _: None)
    file = tmp_path / "aiModels.json"
    file.write_text('[{"pipeline": "llm", "model_id": "org/a", "warm": true}]')
    with pytest.raises(ClusterUnreachable, match="nothing was deployed"):
        apply.run(
            str(file),
            ray_address="auto",
            models_dir=Path("/models"),
            device=Device.AUTO,
            autoscaler_gpus=None,
            http=None,
        )


def test_who_says_cpu_gets_it_though_there_were_gpus(cluster: Cluster) -> None:
    cluster.gpus = 1
    reconciler(cluster, Device.GPU).step([A])
    cluster.gpus = 0
    assert reconciler(cluster, Device.CPU).step([A])


def with_http(cluster: Cluster) -> Reconciler:
    return Reconciler(
        models_dir=Path("/models"), device=Device.CPU, http=HTTP, clock=lambda: cluster.now
    )


def test_tokens_of_the_http_api_are_renewed(cluster: Cluster) -> None:
    keeper = with_http(cluster)
    assert keeper.step([A])
    assert cluster.deployed == [[NAME_A, APP]]
    keeper.renew_tokens((Token.of("another-token-of-16"),))
    assert keeper.step([A])
    assert not keeper.step([A])
    (deployment,) = cluster.applications[APP]["deployed_app_config"]["deployments"]
    assert len(deployment["user_config"]["tokens"]) == 1


def test_http_that_cannot_be_had_stops_no_model(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.http_in_the_way = "somebody else listens there"
    keeper = with_http(cluster)
    keeper.step([A])
    keeper.renew_tokens(())
    keeper.step([A, B])
    assert cluster.deployed == [[NAME_A], [NAME_A, NAME_B]]
    assert cluster.config["proxy_location"] == "Disabled"
    assert caplog.text.count("no HTTP API: somebody else listens there") == 1
