"""The process that keeps the cluster's models those of the aiModels.json.

`python -m cluster.deployer` prints one JSON line, `{"ray_address": ..., "local": ...}`, once the
models are handed to Serve; they load after that. Then it follows the file and the cluster
(`cluster.reconcile`) until its supervisor ends or tells it to. Where there is no cluster it is
the local one, which lives as long as this process.

It is a Ray driver, so it is terminated when the cluster's GCS is away for a minute. Nothing is
lost with it: the next one compares the same file with the same cluster.
"""

import argparse
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import ray

from cluster import logs, ray_cluster
from cluster.ai_models_watch import LOOK_S, AIModelsWatch
from cluster.errors import ClusterUnreachable, ConfigError
from cluster.http_api import add_http_flags, http_settings
from cluster.reconcile import Reconciler
from cluster.settings import (
    EXIT_CONFIG,
    EXIT_NO_CLUSTER,
    add_cluster_flags,
    add_models_flags,
    device,
    models_dir,
)
from cluster.supervised import listen_to_the_supervisor

logger = logging.getLogger("cluster.deployer")

LAST_STEP_S = 5.0
"""For a step that has begun when we are to end; it takes milliseconds."""


def main() -> int:
    """Deploys, says where, and keeps it so. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="cluster.deployer")
    parser.add_argument("--ray-address", required=True)
    parser.add_argument("--last-good", type=Path)
    parser.add_argument("--log-json", action="store_true")
    add_models_flags(parser)
    add_cluster_flags(parser)
    add_http_flags(parser)
    arguments = parser.parse_args()
    logs.configure(as_json=arguments.log_json)
    try:
        watch = AIModelsWatch(arguments.ai_models, last_good=arguments.last_good)
        reconciler = Reconciler(
            models_dir=models_dir(arguments.ai_models_dir),
            device=device(arguments.device),
            autoscaler_gpus=arguments.autoscaler_gpus,
            http=http_settings(arguments),
        )
        local = ray_cluster.join(arguments.ray_address)
    except ConfigError as error:
        logger.error("%s", error)  # noqa: TRY400 - a setting is wrong, not the program
        return EXIT_CONFIG
    except ClusterUnreachable as error:
        logger.error("%s", error)  # noqa: TRY400 - as above
        return EXIT_NO_CLUSTER
    reconciler.step(watch.current.models)
    address = ray.get_runtime_context().gcs_address
    print(json.dumps({"ray_address": address, "local": local}), flush=True)
    again, end = threading.Event(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: end.set())
    signal.signal(signal.SIGHUP, lambda *_: again.set())
    listen_to_the_supervisor(read_again=again.set, end=end.set)

    def read_again() -> None:
        try:
            if http := http_settings(arguments):
                reconciler.renew_tokens(http.tokens)
        except ConfigError as error:
            logger.error("%s; the tokens stay as they are", error)  # noqa: TRY400 - as above

    keeping = threading.Thread(
        target=_keep,
        args=(watch, reconciler, read_again),
        kwargs={"again": again, "end": end},
        daemon=True,
    )
    keeping.start()
    end.wait()
    again.set()
    # A call to a cluster that is away takes its time, and the end does not wait for it.
    keeping.join(timeout=LAST_STEP_S)
    if local:
        ray.shutdown()
    return 0


def _keep(
    watch: AIModelsWatch,
    reconciler: Reconciler,
    read_again: Callable[[], None],
    *,
    again: threading.Event,
    end: threading.Event,
) -> None:
    """Goes on until the end, and brings it about when it fails: then we are started again."""
    silent = False
    try:
        while True:
            asked = again.wait(LOOK_S)
            again.clear()
            if end.is_set():
                return
            watch.look(again=asked)
            if asked:
                read_again()
            try:
                reconciler.step(watch.current.models, retry_failed=asked)
            except Exception as error:  # noqa: BLE001 - whatever Ray raises while it restarts
                if not silent:
                    logger.warning("the cluster does not answer (%s)", type(error).__name__)
                silent = True
            else:
                if silent:
                    logger.info("the cluster answers again")
                silent = False
    finally:
        end.set()


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # Other threads may be in the middle of a call, which would hold up the interpreter's end.
    os._exit(status)
