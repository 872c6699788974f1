"""`livepeer-ray serve-config`: prints the file that `serve run` and `serve deploy` take."""

import sys
from pathlib import Path

from cluster.ai_models import load_ai_models
from cluster.http_api import HTTPSettings
from cluster.placement import UNBOUNDED, Supply, place
from cluster.serve_config import on_ray, serve_config, to_yaml
from cluster.settings import Device
from cluster.supply import autoscaler_most


def run(
    source: str,
    *,
    models_dir: Path,
    device: Device,
    autoscaler_gpus: str | None,
    http: HTTPSettings | None,
) -> int:
    """Prints the YAML to stdout and warnings to stderr.

    Raises:
        ConfigError: the aiModels.json has problems, or `autoscaler_gpus` makes no sense.
    """
    most = autoscaler_most(autoscaler_gpus)
    models = load_ai_models(source)
    for warning in models.warnings:
        print(warning, file=sys.stderr)
    available = len(most)
    if device is Device.AUTO and not most:
        from deployments.hardware import local_gpus

        available = len(local_gpus())
    gpus = device.gpus(available)
    if not gpus and device is Device.AUTO:
        print(
            "this machine has no GPU, so the models are to run on CPUs; for a cluster with GPU "
            "machines, say --device gpu",
            file=sys.stderr,
        )
    supply = Supply(nodes=(), addable=tuple(most)) if gpus and most else UNBOUNDED
    placement = place(on_ray(models.models), supply=supply)
    for lacking in placement.lacking:
        print(lacking, file=sys.stderr)
    config = serve_config(
        placement, models_dir=models_dir, gpus=gpus, autoscaler_gpus=autoscaler_gpus, http=http
    )
    print(to_yaml(config), end="")
    return 0
