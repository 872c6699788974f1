"""`livepeer-ray serve-config`: prints the file that `serve run` and `serve deploy` take."""

import sys
from pathlib import Path

from cluster.ai_models import load_ai_models
from cluster.serve_config import on_ray, serve_config, to_yaml
from cluster.settings import Device


def run(source: str, *, models_dir: Path, device: Device) -> int:
    """Prints the YAML to stdout and warnings to stderr.

    Raises:
        AIModelsError: the aiModels.json has problems.
    """
    models = load_ai_models(source)
    for warning in models.warnings:
        print(warning, file=sys.stderr)
    available = 0
    if device is Device.AUTO:
        from cluster.hardware import local_gpus

        available = len(local_gpus())
    gpus = device.gpus(available)
    if not gpus and device is Device.AUTO:
        print(
            "this machine has no GPU, so the models are to run on CPUs; for a cluster with GPU "
            "machines, say --device gpu",
            file=sys.stderr,
        )
    config = serve_config(on_ray(models.models), models_dir=models_dir, gpus=gpus)
    print(to_yaml(config), end="")
    return 0
