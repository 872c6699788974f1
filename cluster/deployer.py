"""The process that puts the models on the cluster and, where there is no cluster, is the local one.

`python -m cluster.deployer` prints one JSON line, `{"ray_address": ..., "local": ...}`, once the
models are handed to Serve; they load after that. A local cluster lives as long as this process,
which ends with its stdin: so nothing outlives the supervisor, however that one ends.
"""

import argparse
import json
import logging
import os
import signal
import sys
import threading

import ray

from cluster import logs, serve_client
from cluster.ai_models import load_ai_models
from cluster.errors import ClusterUnreachable, ConfigError
from cluster.placement import UNBOUNDED, place
from cluster.serve_config import on_ray, serve_config
from cluster.settings import (
    EXIT_CONFIG,
    EXIT_NO_CLUSTER,
    Device,
    add_cluster_flags,
    add_models_flags,
    device,
    models_dir,
)
from cluster.supervised import when_the_supervisor_ends
from cluster.supply import autoscaler_most, supply

logger = logging.getLogger("cluster.deployer")


def main() -> int:
    """Deploys, says where, and stays if the cluster is its own. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="cluster.deployer")
    parser.add_argument("--ray-address", required=True)
    parser.add_argument("--log-json", action="store_true")
    add_models_flags(parser)
    add_cluster_flags(parser)
    arguments = parser.parse_args()
    logs.configure(as_json=arguments.log_json)
    try:
        served = on_ray(load_ai_models(arguments.ai_models).models)
        wanted, directory = device(arguments.device), models_dir(arguments.ai_models_dir)
        most = autoscaler_most(arguments.autoscaler_gpus)
        local = _join(arguments.ray_address)
    except ConfigError as error:
        logger.error("%s", error)  # noqa: TRY400 - a setting is wrong, not the program
        return EXIT_CONFIG
    except ClusterUnreachable as error:
        logger.error("%s", error)  # noqa: TRY400 - as above
        return EXIT_NO_CLUSTER
    available = supply(serve_client.node_resources(), most)
    gpus = wanted.gpus(available.gpus)
    if not gpus and wanted is Device.AUTO:
        logger.warning(
            "the cluster has no GPU, so models run on its CPUs; where GPU machines join later, "
            "say --device gpu"
        )
    # With --device gpu and no GPU yet, replicas wait for the first machine that has some.
    bounded = gpus and available.gpus > 0
    placement = place(served, supply=available if bounded else UNBOUNDED)
    for lacking in placement.lacking:
        logger.warning("%s", lacking)
    serve_client.deploy(serve_config(placement, models_dir=directory, gpus=gpus))
    address = ray.get_runtime_context().gcs_address
    print(json.dumps({"ray_address": address, "local": local}), flush=True)
    if local:
        _until_the_supervisor_ends()
    ray.shutdown()
    return 0


def _join(address: str) -> bool:
    """Connects to the cluster or starts a local one; returns whether it is a local one.

    Raises:
        ClusterUnreachable: there is no cluster at an address that was given.
    """
    if address != "local":
        try:
            serve_client.connect(address)
        except ClusterUnreachable:
            if address != "auto":
                raise
        else:
            return False
    serve_client.start_local()
    return True


def _until_the_supervisor_ends() -> None:
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    when_the_supervisor_ends(ended.set)
    ended.wait()


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # The stdin thread may still be in its read, which would hold up the interpreter's end.
    os._exit(status)
