"""A Ray cluster for a test run: prints its address and lives until its stdin ends.

Its CPUs are a number for Ray's scheduler, so that more replicas fit than the machine has cores.
So are its GPUs and its machines: each argument makes one with so many GPUs, the head first.
"""

import os
import sys

from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray.cluster_utils import Cluster

if __name__ == "__main__":
    ensure_token_if_auth_enabled()  # which `ray.init` does, and Cluster does not
    machines = [
        {
            "num_cpus": 32,
            "num_gpus": int(gpus),
            "include_dashboard": False,
            "object_store_memory": 300 * 1024 * 1024,
        }
        for gpus in sys.argv[1:]
    ]
    cluster = Cluster(initialize_head=True, head_node_args=machines[0])
    for machine in machines[1:]:
        cluster.add_node(wait=False, **machine)
    cluster.wait_for_nodes()
    sys.stdout.write(cluster.address + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    cluster.shutdown()  # type: ignore[no-untyped-call]
    os._exit(0)
