"""The Serve config: what is rendered for which entry, and that Serve takes it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve._private.deploy_utils import get_app_code_version
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from cluster.ai_models import ModelKey, load_ai_models
from cluster.cli import main
from cluster.placement import UNBOUNDED, GPUNode, Supply, place
from cluster.serve_config import app_name, model_of, on_ray, serve_config, to_yaml

PIPELINE = "text-to-image"


def render(
    tmp_path: Path,
    *entries: dict[str, Any],
    gpus: bool = True,
    supply: Supply = UNBOUNDED,
) -> list[dict[str, Any]]:
    """The applications as Serve reads them back from the YAML, defaults left out."""
    file = tmp_path / "aiModels.json"
    file.write_text(json.dumps([{"pipeline": PIPELINE, **entry} for entry in entries]))
    models = on_ray(load_ai_models(file).models)
    placement = place(models, supply=supply)
    text = to_yaml(serve_config(placement, models_dir=Path("/models"), gpus=gpus))
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
        "gpu_share": 1.0,
        "sfast": True,
        "deepcache": False,
    }
    deployment = model_deployment(application)
    scaling = deployment["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (3, 3)
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
    assert application["args"]["gpu_share"] == 0.5
    assert deployment["max_ongoing_requests"] == 2
    scaling = deployment["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (1, 4)
    assert scaling["target_ongoing_requests"] == 2


def test_what_fits_is_served_and_may_grow_into_the_rest(tmp_path: Path) -> None:
    supply = Supply(nodes=(GPUNode(gpus=2, accelerator_type="H100"),))
    warm, cold = render(
        tmp_path,
        {"model_id": "org/a", "warm": True, "capacity": 1},
        {"model_id": "org/b", "warm": False},
        {"model_id": "org/c", "warm": True, "capacity": 1, "ray": {"num_gpus": 4}},
        supply=supply,
    )
    scaling = [model_deployment(app)["autoscaling_config"] for app in (warm, cold)]
    assert [(s["min_replicas"], s["max_replicas"]) for s in scaling] == [(1, 2), (0, 1)]


def test_no_other_cluster_and_no_other_bounds_restart_a_model(tmp_path: Path) -> None:
    """Serve rolls the replicas of an application whose code, by this version, is another."""

    def version(gpus: int, **ray: Any) -> str:
        (application,) = render(
            tmp_path,
            {"model_id": "org/a", "warm": True, "capacity": 2, "ray": ray},
            supply=Supply(nodes=(GPUNode(gpus=gpus),)),
        )
        return get_app_code_version(ServeApplicationSchema.model_validate(application))

    assert version(1) == version(2) == version(9)
    assert version(9) == version(9, max_replicas=2) == version(9, max_ongoing_requests=2)


def test_replicas_are_packed_on_machines_with_gpus_alone(tmp_path: Path) -> None:
    file = tmp_path / "aiModels.json"
    file.write_text(json.dumps([{"pipeline": PIPELINE, "model_id": "org/a", "warm": True}]))
    placement = place(load_ai_models(file).models, supply=UNBOUNDED)
    on_gpus, on_cpus = (
        ServeDeploySchema.model_validate(
            yaml.safe_load(to_yaml(serve_config(placement, models_dir=tmp_path, gpus=gpus)))
        )
        for gpus in (True, False)
    )
    assert on_cpus.controller_options is None
    assert on_gpus.controller_options is not None
    # As Ray reads it, in the process of Serve's controller.
    printed = subprocess.run(
        [
            *(sys.executable, "-c"),
            "from ray.serve._private import constants;"
            "print(constants.RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY)",
        ],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **(on_gpus.controller_options.runtime_env or {})["env_vars"]},
    ).stdout
    assert printed == "True\n"


def test_without_gpus_models_run_on_the_cpu(tmp_path: Path) -> None:
    (application,) = render(
        tmp_path,
        {"model_id": "org/a", "warm": True, "ray": {"accelerator_type": "H100"}},
        gpus=False,
    )
    # No CPU is taken either: two cores would hold two replicas, and a third would never start.
    deployment = model_deployment(application)
    assert deployment["ray_actor_options"] == {"num_gpus": 0, "num_cpus": 0}
    assert deployment["num_replicas"] == 1


def test_only_parler_tts_has_packages_of_its_own(tmp_path: Path) -> None:
    parler, bark = render(
        tmp_path,
        {"pipeline": "text-to-speech", "model_id": "parler-tts/parler-tts-mini-v1", "warm": True},
        {"pipeline": "text-to-speech", "model_id": "suno/bark", "warm": True},
    )
    environment = model_deployment(parler)["ray_actor_options"]["runtime_env"]["pip"]
    assert "transformers==4.46.1" in environment["packages"]
    assert "--no-deps" in environment["pip_install_options"]
    assert model_deployment(bark)["ray_actor_options"] == {"num_gpus": 1}


def test_an_engine_comes_with_its_packages_and_what_they_need(tmp_path: Path) -> None:
    (application,) = render(
        tmp_path,
        {"pipeline": "llm", "model_id": "org/a", "ray": {"engine": "vllm", "num_gpus": 2}},
    )
    assert application["args"]["engine"] == "vllm"
    assert application["args"]["gpu_share"] == 1.0
    options = model_deployment(application)["ray_actor_options"]
    assert options["num_gpus"] == 2
    environment = options["runtime_env"]["pip"]
    assert environment["packages"] == ["vllm==0.32.0"]
    assert "--no-deps" not in environment["pip_install_options"]


def test_an_engine_shares_a_card_like_its_model(tmp_path: Path) -> None:
    (application,) = render(
        tmp_path,
        {"pipeline": "llm", "model_id": "org/a", "ray": {"engine": "vllm", "num_gpus": 0.5}},
    )
    assert application["args"]["gpu_share"] == 0.5


def test_without_gpus_too_models_have_the_packages_they_need(tmp_path: Path) -> None:
    (parler,) = render(
        tmp_path,
        {"pipeline": "text-to-speech", "model_id": "parler-tts/parler-tts-mini-v1"},
        gpus=False,
    )
    options = model_deployment(parler)["ray_actor_options"]
    assert (options["num_gpus"], options["num_cpus"]) == (0, 0)
    assert "parler-tts==0.2.3" in options["runtime_env"]["pip"]["packages"]


def test_without_gpus_no_engine_is_installed_that_needs_them(tmp_path: Path) -> None:
    (application,) = render(
        tmp_path,
        {"pipeline": "llm", "model_id": "org/a", "ray": {"engine": "vllm"}},
        gpus=False,
    )
    assert model_deployment(application)["ray_actor_options"] == {"num_gpus": 0, "num_cpus": 0}
    assert "engine" not in application["args"]


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
    assert [model_of(app_name(key)) for key in keys] == keys
    assert model_of("default") is None


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
