"""The Serve config: what is rendered for which entry, and that Serve takes it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from cluster.ai_models import ModelKey, load_ai_models
from cluster.cli import main
from cluster.serve_config import app_name, on_ray, serve_config, to_yaml

PIPELINE = "text-to-image"


def render(tmp_path: Path, *entries: dict[str, Any], gpus: bool = True) -> list[dict[str, Any]]:
    """The applications as Serve reads them back from the YAML, defaults left out."""
    file = tmp_path / "aiModels.json"
    file.write_text(json.dumps([{"pipeline": PIPELINE, **entry} for entry in entries]))
    models = on_ray(load_ai_models(file).models)
    text = to_yaml(serve_config(models, models_dir=Path("/models"), gpus=gpus))
    schema = ServeDeploySchema.model_validate(yaml.safe_load(text))
    return [app.model_dump(exclude_unset=True, mode="json") for app in schema.applications]


def model_deployment(application: dict[str, Any]) -> dict[str, Any]:
    (deployment,) = application["deployments"]
    assert deployment["name"] == "model"
    return dict(deployment)


def test_a_warm_model_has_a_gpu_for_each_replica(tmp_path: Path) -> None:
    (application,) = render(
        tmp_path,
        {"model_id": "org/a", "warm": True, "capacity": 3, "optimization_flags": {"SFAST": True}},
    )
    assert application["name"] == "text-to-image--org--a"
    assert application["args"] == {
        "pipeline": PIPELINE,
        "model_id": "org/a",
        "models_dir": "/models",
        "sfast": True,
        "deepcache": False,
    }
    deployment = model_deployment(application)
    assert deployment["num_replicas"] == 3
    assert deployment["ray_actor_options"]["num_gpus"] == 1


def test_a_cold_model_starts_from_zero(tmp_path: Path) -> None:
    (application,) = render(tmp_path, {"model_id": "org/a", "warm": False, "capacity": 2})
    scaling = model_deployment(application)["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (0, 2)


def test_our_own_options(tmp_path: Path) -> None:
    options = {
        "num_gpus": 0.5,
        "max_replicas": 4,
        "max_ongoing_requests": 2,
        "accelerator_type": "H100",
    }
    (application,) = render(tmp_path, {"model_id": "org/a", "warm": True, "ray": options})
    deployment = model_deployment(application)
    assert deployment["ray_actor_options"] == {"num_gpus": 0.5, "accelerator_type": "H100"}
    assert deployment["max_ongoing_requests"] == 2
    scaling = deployment["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (1, 4)
    assert scaling["target_ongoing_requests"] == 2


def test_without_gpus_models_run_on_the_cpu(tmp_path: Path) -> None:
    (application,) = render(
        tmp_path,
        {"model_id": "org/a", "warm": True, "ray": {"accelerator_type": "H100"}},
        gpus=False,
    )
    # No CPU is taken either: two cores would hold two replicas, and a third would never start.
    assert model_deployment(application)["ray_actor_options"] == {"num_gpus": 0, "num_cpus": 0}


def test_models_behind_a_url_are_not_deployed(tmp_path: Path) -> None:
    applications = render(
        tmp_path,
        {"model_id": "org/a", "warm": True, "url": "http://container.example:8000"},
        {"model_id": "org/b", "warm": True},
    )
    assert [application["args"]["model_id"] for application in applications] == ["org/b"]


def test_names_tell_models_apart() -> None:
    keys = [
        ModelKey(PIPELINE, "a/b-c"),
        ModelKey(PIPELINE, "a-b/c"),
        ModelKey(PIPELINE, "abc"),
        ModelKey("image-to-image", "a/b-c"),
    ]
    assert len({app_name(key) for key in keys}) == len(keys)


def test_the_command_prints_what_serve_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--ai-models", f"{PIPELINE}:org/a:true", "--ai-models-dir", str(tmp_path)]
    assert main(["serve-config", *flags, "--device", "gpu"]) == 0
    config = ServeDeploySchema.model_validate(yaml.safe_load(capsys.readouterr().out))
    assert config.applications[0].args["models_dir"] == str(tmp_path)


def test_the_command_lists_every_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "aiModels.json"
    file.write_text('[{"pipeline": "nope", "model_id": "org/a"}, {"pipeline": "text-to-image"}]')
    assert main(["serve-config", "--ai-models", str(file)]) == 2
    printed = capsys.readouterr().err
    assert "entry 1" in printed
    assert "entry 2" in printed
