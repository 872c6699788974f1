"""A Ray cluster for a test run: prints its address and lives until its stdin ends.

Its CPUs are a number for Ray's scheduler, so that more replicas fit than the machine has cores.
So are its GPUs, as many as the first argument says: none if there is none. The second is for
how many nodes beside the head have them, in its place.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

import ray
from ray.cluster_utils import Cluster

MEMORY_BYTES = 300 * 1024 * 1024


def start(gpus: int, nodes: int) -> tuple[str, Callable[[], None]]:
    """Returns the cluster's address and what ends it."""
    if not nodes:
        ray.init(
            address="local",
            num_cpus=32,
            num_gpus=gpus,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=MEMORY_BYTES,
        )
        return str(ray.get_runtime_context().gcs_address), ray.shutdown
    shared: dict[str, Any] = {"num_cpus": 8, "object_store_memory": MEMORY_BYTES // 2}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_gpus": 0, "include_dashboard": False, **shared}
    )
    for _ in range(nodes):
        cluster.add_node(wait=False, num_gpus=gpus, **shared)
    cluster.wait_for_nodes()
    return str(cluster.address), cluster.shutdown


if __name__ == "__main__":
    address, end = start(*map(int, sys.argv[1:]))
    sys.stdout.write(f"{address}\n")
    sys.stdout.flush()
    sys.stdin.read()
    end()
    os._exit(0)
