"""AIModels to a Serve config: one application per model, the file that `serve run` takes.

Who the model is stands in an application's `args`: a change restarts that model alone. How
much of it there is stands in its `deployments`: a change keeps the running replicas.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.ai_models import AIModel, ModelKey
from deployments.model_args import DEPLOYMENT, ModelArgs


def app_name(key: ModelKey) -> str:
    """The application of a model, `text-to-image--org--name`.

    Different models get different names: a Hugging Face id has one slash and never `--`.
    """
    return f"{key.pipeline}--{key.model_id.replace('/', '--')}"


def on_ray(models: Sequence[AIModel]) -> tuple[AIModel, ...]:
    """The models that this cluster runs itself: those without the url of a container."""
    return tuple(model for model in models if not model.url)


def serve_config(models: Sequence[AIModel], *, models_dir: Path, gpus: bool) -> dict[str, Any]:
    """Renders the config.

    Args:
        models: those to serve on this cluster.
        models_dir: Hugging Face cache, at the same path on every node.
        gpus: whether the cluster has GPUs; without, models run on its CPUs.
    """
    return {
        # Jobs come through deployment handles, so that no HTTP proxy has to run.
        "proxy_location": "Disabled",
        "applications": [_application(model, models_dir, gpus=gpus) for model in models],
    }


def to_yaml(config: dict[str, Any]) -> str:
    """The config as `serve run` reads it."""
    return yaml.safe_dump(config, sort_keys=False)


def _application(model: AIModel, models_dir: Path, *, gpus: bool) -> dict[str, Any]:
    return {
        "name": app_name(model.key),
        "route_prefix": None,
        "import_path": "deployments.app:build",
        "args": ModelArgs(
            pipeline=model.pipeline,
            model_id=model.model_id,
            models_dir=models_dir,
            sfast=model.flags.sfast,
            deepcache=model.flags.deepcache,
        ).model_dump(mode="json"),
        "deployments": [
            {
                "name": DEPLOYMENT,
                "max_ongoing_requests": model.ray.max_ongoing_requests,
                "ray_actor_options": _actor_options(model, gpus=gpus),
                **_replicas(model),
            }
        ],
    }


def _actor_options(model: AIModel, *, gpus: bool) -> dict[str, Any]:
    if not gpus:
        # The cores are shared by all models. By Serve's default each replica would take a whole
        # one of Ray's CPUs, and on two cores a third replica would wait for ever.
        return {"num_gpus": 0, "num_cpus": 0}
    options: dict[str, Any] = {"num_gpus": model.ray.num_gpus}
    if model.ray.accelerator_type:
        options["accelerator_type"] = model.ray.accelerator_type
    return options


def _replicas(model: AIModel) -> dict[str, Any]:
    """Fixed where nothing may change, otherwise autoscaled between the bounds."""
    minimum = model.capacity if model.warm else 0
    maximum = max(model.ray.max_replicas or model.capacity, minimum, 1)
    if minimum == maximum:
        return {"num_replicas": minimum}
    return {
        "autoscaling_config": {
            "min_replicas": minimum,
            "max_replicas": maximum,
            # A replica is full when all its slots are taken.
            "target_ongoing_requests": model.ray.max_ongoing_requests,
        }
    }
