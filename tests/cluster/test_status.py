"""What Serve, Ray and a bridge say, joined and shown."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from cluster.commands.status import ask_bridge
from cluster.status import document, table

BRIDGE: dict[str, Any] = {
    "models": [
        {"pipeline": "llm", "model_id": "org/a", "warm": True, "slots": 4, "in_flight": 3},
        {"pipeline": "llm", "model_id": "org/b", "warm": True, "slots": 0, "in_flight": 0},
    ],
    "containers": [],
    "registrations": [
        {
            "orchestrator": "https://orchestrator.example:8935",
            "way": "worker",
            "registered": True,
            "detail": "",
            "certificate": "ab" * 32,
            "advertised": [{"pipeline": "llm", "model_id": "org/a", "slots": 4, "warm": True}],
        }
    ],
}
NODE = {
    "NodeID": "n1",
    "Draining": False,
    "NodeManagerAddress": "10.0.0.1",
    "NodeManagerHostname": "worker-1",
    "Resources": {"CPU": 8.0, "GPU": 4.0, "accelerator_type:H100": 1.0},
}


def application(*states: str, status: str = "RUNNING", **scaling: int) -> dict[str, Any]:
    """An application as Serve's controller tells of it."""
    config: dict[str, Any] = {"max_ongoing_requests": 2, "ray_actor_options": {"num_gpus": 1.0}}
    config |= {"autoscaling_config": scaling} if scaling else {"num_replicas": 3}
    return {
        "status": status,
        "message": "",
        "deployments": {
            "model": {
                "message": "",
                "target_num_replicas": 3,
                "deployment_config": config,
                "replicas": [{"state": state, "node_id": "n1"} for state in states],
            }
        },
    }


def model(status: dict[str, Any], model_id: str = "org/a") -> dict[str, Any]:
    (found,) = (model for model in status["models"] if model["model_id"] == model_id)
    return dict(found)


def test_replicas_by_state_and_what_the_bridge_adds() -> None:
    applications = {"llm--org--a": application("RUNNING", "RUNNING", "STARTING", "STOPPING")}
    status = document(applications=applications, nodes=[NODE], bridge=BRIDGE)
    assert model(status) == {
        "pipeline": "llm",
        "model_id": "org/a",
        "state": "RUNNING",
        "message": "",
        "warm": True,
        "wanted": 3,
        "running": 2,
        "starting": 1,
        "slots": 4,
        "in_flight": 3,
        "advertised": 4,
    }
    assert model(status, "org/b")["state"] == "NOT_DEPLOYED"
    (node,) = status["nodes"]
    assert (node["gpus"], node["gpus_taken"]) == (4.0, 4.0)
    assert node["gpu_type"] == "H100"

    text = table(status)
    assert "2 of 3, 1 starting" in text
    assert "worker-1 (10.0.0.1)" in text
    assert "4 of 4 taken, H100" in text
    assert "2 x org/a (llm, 1 GPU)" in text
    assert "https://orchestrator.example:8935  worker  registered" in text


def test_a_node_that_is_drained() -> None:
    status = document(applications={}, nodes=[{**NODE, "Draining": True}], bridge=None)
    assert (status["nodes"][0]["id"], status["nodes"][0]["draining"]) == ("n1", True)
    assert "worker-1 (10.0.0.1), draining" in table(status)


def test_without_a_bridge_what_it_knows_is_null() -> None:
    applications = {"llm--org--a": application("RUNNING", min_replicas=0, max_replicas=4)}
    status = document(applications=applications, nodes=[NODE], bridge=None)
    found = model(status)
    assert (found["warm"], found["in_flight"], found["advertised"]) == (False, None, None)
    assert status["orchestrators"] is None
    assert "ORCHESTRATOR" not in table(status)


def test_a_failed_model_shows_the_last_line_of_why() -> None:
    failed = application(status="DEPLOY_FAILED")
    failed["deployments"]["model"]["message"] = (
        "Traceback\n  ...\ndeployments.errors.ModelNotFound: not in /models"
    )
    status = document(applications={"llm--org--a": failed}, nodes=[], bridge=None)
    assert "DEPLOY_FAILED: ModelNotFound: not in /models" in table(status)


def test_somebody_elses_applications_and_one_that_is_rebuilt() -> None:
    rebuilt = application()
    rebuilt["deployments"] = {}
    applications = {"llm--org--a": rebuilt, "default": application("RUNNING")}
    status = document(applications=applications, nodes=[NODE], bridge=None)
    assert model(status)["warm"] is None
    assert len(status["models"]) == 1
    assert status["nodes"][0]["replicas"] == []
    assert table(status)


def test_a_replica_that_has_no_machine_yet() -> None:
    waiting = application("STARTING")
    del waiting["deployments"]["model"]["replicas"][0]["node_id"]
    status = document(applications={"llm--org--a": waiting}, nodes=[NODE], bridge=None)
    assert model(status)["starting"] == 1
    assert status["nodes"][0]["replicas"] == []


def test_external_containers() -> None:
    container = {
        "pipeline": "llm",
        "model_id": "org/b",
        "url": "http://10.0.0.9:8000",
        "slots": 0,
        "in_flight": 1,
        "detail": "/health answers 500",
        "runner_version": "0.14.1",
        "gpus": ["NVIDIA L40S"],
    }
    bridge = {**BRIDGE, "containers": [container]}
    status = document(applications={}, nodes=[NODE], bridge=bridge)
    assert model(status, "org/b")["state"] == "EXTERNAL"
    assert status["containers"] == [container]
    assert (
        "http://10.0.0.9:8000  llm org/b  0      1          0.14.1  NVIDIA L40S  "
        "/health answers 500" in table(status)
    )


@contextmanager
def answering(body: bytes) -> Iterator[tuple[str, int]]:
    """Somebody who says this to whatever is asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        serving.start()
        try:
            yield "127.0.0.1", server.server_port
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"5", b"null", b'[{"models": 1}]', b"{}", b"[" * 100_000]
)
def test_somebody_else_on_the_bridges_port_is_no_bridge(body: bytes) -> None:
    with answering(body) as where:
        assert ask_bridge(where) is None


def test_a_bridge_is_believed() -> None:
    with answering(json.dumps(BRIDGE).encode()) as where:
        assert ask_bridge(where) == BRIDGE
