"""AIModels to a Serve config: one application per model, the file that `serve run` takes.

Who the model is stands in an application's `args`: a change restarts that model alone. How
much of it there is stands in its `deployments`: a change keeps the running replicas, but for one of
the autoscaling policy, which Serve takes for other code (Ray 2.60, get_app_code_version). So what
is said to the policy is what restarts a model anyway, and it has one whatever its bounds are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.ai_models import AIModel, ModelKey
from cluster.http_api import HTTPSettings, http_options, ingress
from cluster.placement import Placement, Served
from cluster.scaling import LOOK_BACK_S, REPORT_S, Scaler
from deployments.model_args import DEPLOYMENT, ModelArgs
from deployments.registry import PIPELINES

PIP_INSTALL_OPTIONS = ["--disable-pip-version-check", "--no-cache-dir"]
"""Ray's defaults, which it forgets where others are added."""

PACK = {"RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY": "1"}
"""By default Serve spreads replicas over machines, until each has one card in use and none the two
that another model needs. Not without GPUs: there all models would crowd one machine's CPUs."""

POLICY = f"{__name__}:{Scaler.__name__}"
"""Serve pickles by value what the module that is named here defines, and all scalers have to be
of one class, that of their own module."""


def app_name(key: ModelKey) -> str:
    """The application of a model, `text-to-image--org--name`.

    Different models get different names: a Hugging Face id has one slash and never `--`.
    """
    return f"{key.pipeline}--{key.model_id.replace('/', '--')}"


def model_of(name: str) -> ModelKey | None:
    """The model of an application; None for one that is not ours."""
    pipeline, _, model_id = name.partition("--")
    if pipeline not in PIPELINES or not model_id:
        return None
    return ModelKey(pipeline, model_id.replace("--", "/"))


def on_ray(models: Sequence[AIModel]) -> tuple[AIModel, ...]:
    """The models that this cluster runs itself: those without the url of a container."""
    return tuple(model for model in models if not model.url)


def serve_config(
    placement: Placement,
    *,
    models_dir: Path,
    gpus: bool,
    autoscaler_gpus: str | None = None,
    http: HTTPSettings | None = None,
) -> dict[str, Any]:
    """Renders the config.

    Args:
        placement: what to serve on this cluster.
        models_dir: Hugging Face cache, at the same path on every node.
        gpus: whether the cluster has GPUs; without, models run on its CPUs.
        autoscaler_gpus: the setting of that name (`cluster.supply`).
        http: the HTTP API, None for none.
    """
    applications = [
        _application(served, models_dir, gpus=gpus, autoscaler_gpus=autoscaler_gpus)
        for served in placement.served
    ]
    if http:
        names = [application["name"] for application in applications]
        applications.append(ingress(http, list(zip(names, placement.served, strict=True))))
    config: dict[str, Any] = {**http_options(http), "applications": applications}
    if gpus:
        config["controller_options"] = {"runtime_env": {"env_vars": PACK}}
    return config


def to_yaml(config: dict[str, Any]) -> str:
    """The config as `serve run` reads it."""
    return yaml.safe_dump(config, sort_keys=False)


def _application(
    served: Served, models_dir: Path, *, gpus: bool, autoscaler_gpus: str | None
) -> dict[str, Any]:
    model = served.model
    actor = _actor_options(model, gpus=gpus)
    return {
        "name": app_name(model.key),
        "route_prefix": None,
        "import_path": "deployments.app:build",
        "args": ModelArgs(
            pipeline=model.pipeline,
            model_id=model.model_id,
            models_dir=models_dir,
            engine=_engine(model, gpus=gpus),
            # None of the GPU (0) is the CPU, where it means nothing.
            gpu_share=min(model.ray.num_gpus, 1) or 1,
            sfast=model.flags.sfast,
            deepcache=model.flags.deepcache,
        ).model_dump(mode="json", exclude_none=True),
        "deployments": [
            {
                "name": DEPLOYMENT,
                "max_ongoing_requests": model.ray.max_ongoing_requests,
                "ray_actor_options": actor,
                **_replicas(served, actor, autoscaler_gpus),
            }
        ],
    }


def _engine(model: AIModel, *, gpus: bool) -> str | None:
    """On CPUs each pipeline has its own: the others' packages are made for GPUs."""
    return model.ray.engine if gpus else None


def _actor_options(model: AIModel, *, gpus: bool) -> dict[str, Any]:
    # Without GPUs the cores are shared by all models. By Serve's default each replica would take a
    # whole one of Ray's CPUs, and on two cores a third replica would wait for ever.
    options: dict[str, Any] = (
        {"num_gpus": model.ray.num_gpus} if gpus else {"num_gpus": 0, "num_cpus": 0}
    )
    if gpus and model.ray.accelerator_type:
        options["accelerator_type"] = model.ray.accelerator_type
    variant = PIPELINES[model.pipeline].variant(model.model_id, _engine(model, gpus=gpus))
    if variant:
        flags = PIP_INSTALL_OPTIONS if variant.dependencies else ["--no-deps", *PIP_INSTALL_OPTIONS]
        pip = {"packages": list(variant.packages), "pip_install_options": flags}
        options["runtime_env"] = {"pip": pip}
    return options


def _replicas(served: Served, actor: dict[str, Any], autoscaler_gpus: str | None) -> dict[str, Any]:
    """Autoscaled between the bounds; fixed where these are equal and no GPU ever joins."""
    if served.min_replicas == served.max_replicas and not actor["num_gpus"]:
        return {"num_replicas": served.min_replicas}
    policy: dict[str, Any] = {
        "app": app_name(served.model.key),
        "num_gpus": actor["num_gpus"],
        "accelerator_type": actor.get("accelerator_type"),
        "autoscaler_gpus": autoscaler_gpus or None,
    }
    return {
        "autoscaling_config": {
            "min_replicas": served.min_replicas,
            "max_replicas": served.max_replicas,
            "target_ongoing_requests": served.model.ray.max_ongoing_requests,
            "look_back_period_s": LOOK_BACK_S,
            # Deprecated, and the only thing that Serve's handles heed (Ray 2.60).
            "metrics_interval_s": REPORT_S,
            # The policy has delays of its own, which end where somebody else waits.
            "upscale_delay_s": 0.0,
            "downscale_delay_s": 0.0,
            "policy": {
                "policy_function": POLICY,
                "policy_kwargs": {key: value for key, value in policy.items() if value is not None},
            },
        }
    }
