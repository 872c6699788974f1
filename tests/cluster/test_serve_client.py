"""Serve's document read into replicas that count, and into where its HTTP listens."""

from typing import Any

import pytest

from cluster import serve_client
from cluster.capacity import ModelStatus
from cluster.errors import ConfigError
from cluster.http_api import HTTPSettings
from cluster.placement import Room
from cluster.serve_client import application_status


def application(*states: str, status: str = "RUNNING") -> dict[str, Any]:
    """As the controller tells it: one replica per state, each on a node of its own."""
    replicas = [
        {"state": state, "actor_name": f"replica-{number}", "node_id": f"node-{number}"}
        for number, state in enumerate(states)
    ]
    return {
        "status": status,
        "message": "",
        "deployments": {
            "model": {"message": "", "replicas": replicas, "deployment_config": {"num_replicas": 1}}
        },
    }


def status_of(document: dict[str, Any]) -> ModelStatus:
    return application_status(document, room=Room(None))


def test_running_replicas_count() -> None:
    assert status_of(application("RUNNING", "STARTING", "RUNNING")) == ModelStatus(
        state="RUNNING",
        running=2,
        replicas=frozenset({("replica-0", "node-0"), ("replica-2", "node-2")}),
    )


def test_replicas_that_work_until_others_take_over_count() -> None:
    assert status_of(application("PENDING_MIGRATION", "STARTING")).running == 1


@pytest.mark.parametrize("state", ["STARTING", "UPDATING", "STOPPING"])
def test_replicas_on_their_way_do_not(state: str) -> None:
    status = status_of(application(state, "RUNNING"))
    assert (status.running, status.rebuilding) == (1, False)


def test_a_replica_that_has_no_node_yet_is_on_its_way() -> None:
    waiting = application("STARTING")
    del waiting["deployments"]["model"]["replicas"][0]["node_id"]
    assert status_of(waiting).running == 0


def test_replicas_that_a_new_controller_has_not_looked_at_are_nothing_new() -> None:
    assert status_of(application("RECOVERING", "RUNNING")).rebuilding


@pytest.mark.parametrize(
    ("status", "rebuilding"), [("DEPLOYING", True), ("DEPLOY_FAILED", False), ("DELETING", False)]
)
def test_an_application_without_a_deployment_is_being_built_or_is_none(
    status: str, rebuilding: bool
) -> None:
    seen = status_of({"status": status, "message": "", "deployments": {}})
    assert (seen.running, seen.rebuilding) == (0, rebuilding)


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ({"proxy_location": "HeadOnly", "http_options": {"host": "127.0.0.1", "port": 8001}}, ""),
        ({"proxy_location": "EveryNode", "http_options": {"host": "0.0.0.0"}}, "0.0.0.0:8000"),
        ({"proxy_location": "HeadOnly"}, "127.0.0.1:8000"),
    ],
)
def test_a_serve_that_runs_keeps_its_address(
    there: dict[str, Any],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(serve_client, "details", lambda: there)
    serve_client.check_http(HTTPSettings(host="127.0.0.1", port=8001))
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


def test_a_serve_that_runs_without_http_does_not_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_client, "details", lambda: {"proxy_location": "Disabled"})
    with pytest.raises(ConfigError, match="`serve shutdown`"):
        serve_client.check_http(HTTPSettings(host="127.0.0.1", port=8000))
