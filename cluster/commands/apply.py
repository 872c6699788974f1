"""`livepeer-ray apply`: an aiModels.json onto a running cluster, once.

For those who deploy by hand. `livepeer-ray start` follows the file by itself, and a bridge its
own; both see the same change without this.
"""

import sys
import time
from pathlib import Path

from cluster import logs, ray_cluster
from cluster.ai_models import load_ai_models
from cluster.errors import ClusterUnreachable
from cluster.http_api import HTTPSettings
from cluster.reconcile import Reconciler
from cluster.settings import Device

PAUSE_S = 0.5


def run(
    source: str,
    *,
    ray_address: str,
    models_dir: Path,
    device: Device,
    autoscaler_gpus: str | None,
    http: HTTPSettings | None,
) -> int:
    """Validates, deploys what differs and returns before the models are loaded.

    Raises:
        ConfigError: the aiModels.json has problems, or a flag; nothing was changed.
        ClusterUnreachable: there is no cluster at the address, or it went away, or its GPUs did.
    """
    logs.configure(as_json=False)
    models = load_ai_models(source)
    for warning in models.warnings:
        print(warning, file=sys.stderr)
    reconciler = Reconciler(
        models_dir=models_dir, device=device, autoscaler_gpus=autoscaler_gpus, http=http
    )
    ray_cluster.connect(ray_address)
    with ray_cluster.reachable():
        changed = reconciler.step(models.models, retry_failed=True)
        while changed or reconciler.waiting:
            time.sleep(PAUSE_S)
            changed = reconciler.step(models.models)
    if reconciler.held:
        raise ClusterUnreachable(
            "nothing was deployed: the models run on GPUs and the cluster has none at the moment; "
            "try again when it has, or say --device cpu"
        )
    print("deployed; the models load now, `livepeer-ray status` shows them")
    return 0
