"""`livepeer-ray models download`: the files of every entry, here or on every node."""

import sys
from pathlib import Path

from cluster.ai_models import load_ai_models
from cluster.downloads import Fetched, Hub, fetch_all
from cluster.serve_config import on_ray


def download(source: str, *, models_dir: Path, ray_address: str | None) -> int:
    """Fetches what is not there yet; one line per repository, problems to stderr.

    Args:
        source: a file or the short form, as `load_ai_models` takes it.
        models_dir: where replicas look, at the same path on every node.
        ray_address: of the cluster whose nodes are to fetch; None for this machine alone.

    Returns:
        The exit status: 0, or 1 where something is missing.

    Raises:
        AIModelsError: the aiModels.json has problems.
        ClusterUnreachable: there is no cluster at the address.
    """
    models = on_ray(load_ai_models(source).models)
    hub = Hub.from_environment()
    if ray_address is None:
        return _say(fetch_all(models, models_dir, hub=hub))
    from cluster import ray_cluster

    ray_cluster.connect(ray_address)
    status = 0
    for node, result in ray_cluster.on_every_node(fetch_all, models, models_dir, hub=hub):
        if isinstance(result, Exception):
            print(f"{node}: {type(result).__name__}: {result}", file=sys.stderr)
            status = 1
        else:
            status = _say(result, where=f"{node}: ") or status
    return status


def _say(fetched: list[Fetched], *, where: str = "") -> int:
    for one in fetched:
        print(f"{where}{one}", file=sys.stderr if one.problem else sys.stdout, flush=True)
    return 1 if any(one.problem for one in fetched) else 0
