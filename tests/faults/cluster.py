"""A Ray cluster of several nodes as a process, with the fake model deployed on it.

It prints its address and lives until its stdin ends; each line on stdin adds a node. A head,
where Serve's controller lives, and nodes with room for all replicas each: those of a node that
dies find a place on another.
"""

import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from cluster import ray_cluster, serve_client
from cluster.ai_models import load_ai_models
from cluster.placement import UNBOUNDED, place
from cluster.serve_config import serve_config
from deployments.model_args import DEPLOYMENT

REPLICAS, NODES = 4, 2
MODEL_ID = "faults/model"
AI_MODELS = f"text-to-image:{MODEL_ID}:true"
ROOM = "room"
"""A resource of the nodes, of which each replica takes one."""


def main() -> None:
    """Runs the cluster."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "include_dashboard": False,
            "object_store_memory": 200 * 1024 * 1024,
        },
    )
    for _ in range(NODES):
        _add_node(cluster)
    ray_cluster.connect(cluster.address)
    _deploy()
    print(cluster.address, flush=True)  # noqa: T201 (whoever started it reads this)
    for _ in sys.stdin:
        _add_node(cluster)
    ray.shutdown()
    cluster.shutdown()  # type: ignore[no-untyped-call]


def _add_node(cluster: Cluster) -> None:
    cluster.add_node(num_cpus=0, resources={ROOM: REPLICAS}, object_store_memory=100 * 1024 * 1024)


def _deploy() -> None:
    placement = place(load_ai_models(AI_MODELS).models, supply=UNBOUNDED)
    config = serve_config(placement, models_dir=Path(), gpus=False)
    (application,) = config["applications"]
    application["import_path"] = "tests.faults.model:build"
    application["deployments"] = [
        {
            "name": DEPLOYMENT,
            "num_replicas": REPLICAS,
            "max_ongoing_requests": 1,
            "ray_actor_options": {"num_cpus": 0, "resources": {ROOM: 1}},
        }
    ]
    serve_client.deploy(config)


if __name__ == "__main__":
    main()
