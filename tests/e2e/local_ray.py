"""A Ray cluster for a test run: prints its address and lives until its stdin ends.

Its CPUs are a number for Ray's scheduler, so that more replicas fit than the machine has cores.
So are its GPUs, as many as the argument says: none if there is none.
"""

import os
import sys

import ray

if __name__ == "__main__":
    ray.init(
        address="local",
        num_cpus=32,
        num_gpus=int(sys.argv[1]),
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=300 * 1024 * 1024,
    )
    sys.stdout.write(ray.get_runtime_context().gcs_address + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    ray.shutdown()
    os._exit(0)
