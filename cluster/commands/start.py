"""`livepeer-ray start`: the models on the cluster and a bridge that is always running.

This process is the supervisor. It uses neither Ray nor gRPC itself: a driver is terminated when
Ray's GCS is away for a minute, and whatever ends the bridge must not end its supervisor.

Order of the end: the bridge first, with time to finish and answer its jobs, and only then the
local cluster that those jobs run on.
"""

import asyncio
import json
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster import logs
from cluster.ai_models import load_ai_models
from cluster.bridge.bridge import LAST_ANSWERS_S
from cluster.settings import (
    ENVIRONMENT_PREFIX,
    EXIT_CONFIG,
    EXIT_INVALID_SECRET,
    BridgeSettings,
    Device,
)
from cluster.supply import autoscaler_most

logger = logging.getLogger(__name__)

RESTART_FIRST_S, RESTART_MAX_S = 1.0, 30.0
HEALTHY_S = 60.0
"""A bridge that lived this long did not fail at its start: the next restart is quick again."""

FATAL = frozenset({EXIT_CONFIG, EXIT_INVALID_SECRET})
"""Exit statuses of the bridge after which a restart would not help. A cluster that is away is
not among them: it may be restarting."""

CLUSTER_END_S = 30.0
"""For a local cluster to shut down."""


def run(
    settings: BridgeSettings,
    *,
    models_dir: Path,
    device: Device,
    autoscaler_gpus: str | None,
    log_json: bool,
) -> int:
    """Runs until SIGTERM or SIGINT and returns the exit status.

    Raises:
        ConfigError: the aiModels.json has problems, or `autoscaler_gpus` makes no sense.
    """
    logs.configure(as_json=log_json)
    load_ai_models(settings.ai_models)
    autoscaler_most(autoscaler_gpus)
    flags = ["--log-json"] if log_json else []
    deploy = [
        *("--ray-address", settings.ray_address),
        *("--ai-models", settings.ai_models),
        *("--ai-models-dir", str(models_dir)),
        *("--device", device.value),
        *(("--autoscaler-gpus", autoscaler_gpus) if autoscaler_gpus else ()),
        *flags,
    ]
    return asyncio.run(_run(settings, deploy=deploy, flags=flags))


async def _run(settings: BridgeSettings, *, deploy: list[str], flags: list[str]) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    deployer = await _child("-m", "cluster.deployer", *deploy, stdout=PIPE)
    try:
        address = await _deployed(deployer, stop)
        if address is None:
            return deployer.returncode or 0
        environment = replace(settings, ray_address=address).environment()
        return await _keep_bridge(
            environment, flags=flags, deployer=deployer, stop=stop, grace_s=settings.grace_s
        )
    finally:
        await _end(deployer, patience_s=CLUSTER_END_S)


async def _child(
    *arguments: str, stdout: int | None = None, environment: Mapping[str, str] | None = None
) -> Process:
    """Starts a Python process whose stdin ends with us.

    In a session of its own: Ctrl-C in a terminal reaches the supervisor alone, which then ends
    its children in order.
    """
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdin=PIPE,
        stdout=stdout,
        env={**_without_secrets(), **(environment or {})},
        start_new_session=True,
    )


def _without_secrets() -> dict[str, str]:
    """Our environment for a child that has no business with the orchestrator.

    A local Ray cluster hands its environment on to every replica.
    """
    private = f"{ENVIRONMENT_PREFIX}ORCH_"
    return {name: value for name, value in os.environ.items() if not name.startswith(private)}


async def _deployed(deployer: Process, stop: asyncio.Event) -> str | None:
    """The cluster's address once the models are deployed; None when that failed or we stop."""
    logger.info("deploying the models")
    if deployer.stdout is None:
        raise RuntimeError("the deployer runs without a pipe")
    reading = asyncio.create_task(deployer.stdout.readline())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not reading.done():
        reading.cancel()
        return None
    line = reading.result()
    if not line:
        await deployer.wait()
        logger.error("the models were not deployed")
        return None
    cluster = json.loads(line)
    logger.info(
        "models deployed to the %s cluster at %s; they load now",
        "local" if cluster["local"] else "Ray",
        cluster["ray_address"],
    )
    if not cluster["local"]:
        await deployer.wait()
    return str(cluster["ray_address"])


async def _keep_bridge(
    environment: dict[str, str],
    *,
    flags: list[str],
    deployer: Process,
    stop: asyncio.Event,
    grace_s: float,
) -> int:
    """Starts the bridge, and again whenever it ends, until we are told to stop."""
    clock = asyncio.get_running_loop().time
    pause_s = RESTART_FIRST_S
    stopping = asyncio.create_task(stop.wait())
    endings: set[asyncio.Task[Any]] = {stopping}
    if deployer.returncode is None:
        # A local cluster: without it there is nothing to serve with.
        endings.add(asyncio.create_task(deployer.wait()))
    try:
        while True:
            started_at = clock()
            bridge = await _child(
                "-m", "cluster.cli", "bridge", "--supervised", *flags, environment=environment
            )
            ended: asyncio.Task[Any] = asyncio.create_task(bridge.wait())
            await asyncio.wait({ended, *endings}, return_when=asyncio.FIRST_COMPLETED)
            if any(task.done() for task in endings):
                # Its own grace and its last answers, and a little more.
                await _end(bridge, patience_s=grace_s + LAST_ANSWERS_S + 10.0)
                if stopping.done():
                    return 0
                logger.error("the local Ray cluster ended")
                return 1
            if bridge.returncode in FATAL:
                return bridge.returncode
            if clock() - started_at > HEALTHY_S:
                pause_s = RESTART_FIRST_S
            logger.error(
                "the bridge ended with status %s; starting it again in %.0f s",
                bridge.returncode,
                pause_s,
            )
            await asyncio.wait(endings, timeout=pause_s)
            pause_s = min(pause_s * 2, RESTART_MAX_S)
    finally:
        for task in endings:
            task.cancel()


async def _end(process: Process, *, patience_s: float) -> None:
    """Asks a child to end, and kills it when it does not."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), timeout=patience_s)
    except TimeoutError:
        logger.error("process %d does not end, killing it", process.pid)  # noqa: TRY400
        process.kill()
        await process.wait()
