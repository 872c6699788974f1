"""What a local Ray cluster is started with."""

import os

import pytest

from cluster import ray_cluster


def test_a_local_cluster_is_told_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {
        "LIVEPEER_RAY_ORCH_SECRET": "s3cret",
        "LIVEPEER_RAY_HTTP_TOKENS": "t0ken",
        "LIVEPEER_RAY_MODELS_DIR": "/models",
    }
    monkeypatch.setattr("os.environ", ours)
    handed_on: dict[str, str] = {}
    monkeypatch.setattr("ray.init", lambda **_: handed_on.update(os.environ))
    ray_cluster.start_local()
    assert handed_on["LIVEPEER_RAY_MODELS_DIR"] == "/models"
    assert not {"s3cret", "t0ken"} & set(handed_on.values())
