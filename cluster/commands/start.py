"""`livepeer-ray start`: the models on the cluster and a bridge, both always running.

This process is the supervisor of two children, which it starts again whenever they end: the
deployer (`cluster.deployer`), which keeps the cluster's models those of the aiModels.json, and
the bridge. It uses neither Ray nor gRPC itself: a driver is terminated when Ray's GCS is away
for a minute, and whatever ends a child must not end its supervisor.

Order of the end: the bridge first, with time to finish and answer its jobs, and only then the
deployer, with the local cluster that those jobs run on.
"""

import asyncio
import json
import logging
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster import logs
from cluster.ai_models import load_ai_models
from cluster.bridge.bridge import LAST_ANSWERS_S
from cluster.bridge_settings import BridgeSettings
from cluster.settings import (
    EXIT_CONFIG,
    EXIT_INVALID_SECRET,
    EXIT_NO_CLUSTER,
    TOKENS_VARIABLE,
    Device,
    without_secrets,
)
from cluster.supervised import READ_AGAIN
from cluster.supply import autoscaler_most

logger = logging.getLogger(__name__)

RESTART_FIRST_S, RESTART_MAX_S = 1.0, 30.0
HEALTHY_S = 60.0
"""A child that lived this long did not fail at its start: the next restart is quick again."""

DEPLOYER_END_S = 30.0
"""For a local cluster to shut down."""


def run(
    settings: BridgeSettings,
    *,
    models_dir: Path,
    device: Device,
    autoscaler_gpus: str | None,
    http: str,
    http_tokens: str | None,
    log_json: bool,
) -> int:
    """Runs until SIGTERM or SIGINT and returns the exit status.

    Raises:
        ConfigError: the aiModels.json has problems, or `autoscaler_gpus` makes no sense.
    """
    logs.configure(as_json=log_json)
    load_ai_models(settings.ai_models)
    autoscaler_most(autoscaler_gpus)
    with tempfile.TemporaryDirectory(prefix="livepeer-ray-") as scratch:
        last_good = ("--last-good", str(Path(scratch) / "aiModels.json"))
        flags = [*last_good, *(["--log-json"] if log_json else [])]
        deploy = [
            *("--ai-models", settings.ai_models),
            *("--ai-models-dir", str(models_dir)),
            *("--device", device.value),
            *("--http", http),
            *(("--autoscaler-gpus", autoscaler_gpus) if autoscaler_gpus else ()),
            *flags,
        ]
        tokens = {TOKENS_VARIABLE: http_tokens} if http_tokens else {}
        supervisor = _Supervisor(settings, deploy=deploy, deploy_environment=tokens, flags=flags)
        return asyncio.run(supervisor.run())


class _Supervisor:
    """The two children."""

    def __init__(
        self,
        settings: BridgeSettings,
        *,
        deploy: list[str],
        deploy_environment: Mapping[str, str],
        flags: list[str],
    ) -> None:
        self._settings = settings
        self._deploy = deploy
        self._deploy_environment = deploy_environment
        self._flags = flags
        self._address = ""
        """Of the cluster, as the deployer said last."""
        self._join = settings.ray_address
        """What the deployer joins. Once it is known it stays: `auto` would take a cluster that is
        away for none, and start a local one."""
        self._cluster, self._no_cluster = asyncio.Event(), asyncio.Event()
        """There is a cluster with our models on it; the local one ended."""
        self._children: set[Process] = set()

    async def run(self) -> int:
        """Runs until told to stop, or until starting a child again would not help."""
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._read_again)
        stopping = asyncio.create_task(stop.wait())
        deployer = asyncio.create_task(self._keep_deployer())
        bridge = asyncio.create_task(self._keep_bridge())
        try:
            await asyncio.wait({stopping, deployer, bridge}, return_when=asyncio.FIRST_COMPLETED)
            return next((task.result() for task in (bridge, deployer) if task.done()), 0)
        finally:
            stopping.cancel()
            for task in (bridge, deployer):
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _keep_deployer(self) -> int:
        """Returns only with a status that a restart would repeat."""
        pauses = _Pauses("the deployer")
        while True:
            logger.info("deploying the models")
            process = await self._child(
                *("-m", "cluster.deployer", "--ray-address", self._join),
                *self._deploy,
                stdout=PIPE,
                environment=self._deploy_environment,
            )
            try:
                if process.stdout is None:
                    raise RuntimeError("the deployer runs without a pipe")
                if line := await process.stdout.readline():
                    self._deployed(json.loads(line))
                status = await process.wait()
            finally:
                await self._end(process, patience_s=DEPLOYER_END_S)
            if not self._address and status in (EXIT_CONFIG, EXIT_NO_CLUSTER):
                return status
            if line and self._join == "local":
                logger.error("the local Ray cluster ended")
                self._cluster.clear()
                self._no_cluster.set()
            await pauses.after(status)

    def _deployed(self, cluster: Mapping[str, Any]) -> None:
        self._address = cluster["ray_address"]
        self._join = "local" if cluster["local"] else self._address
        logger.info(
            "models deployed to the %s cluster at %s; they load now",
            "local" if cluster["local"] else "Ray",
            self._address,
        )
        self._no_cluster.clear()
        self._cluster.set()

    async def _keep_bridge(self) -> int:
        """As `_keep_deployer`."""
        pauses = _Pauses("the bridge")
        lived = False
        while True:
            await self._cluster.wait()
            environment = replace(self._settings, ray_address=self._address).environment()
            bridge = await self._child(
                *("-m", "cluster.cli", "bridge", "--supervised"),
                *self._flags,
                environment=environment,
            )
            ended = asyncio.create_task(bridge.wait())
            lost = asyncio.create_task(self._no_cluster.wait())
            try:
                done, _ = await asyncio.wait({ended, lost}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.cancel()
                lost.cancel()
                # Its own grace and its last answers, and a little more.
                patience_s = self._settings.grace_s + LAST_ANSWERS_S + 10.0
                await self._end(bridge, patience_s=patience_s)
            status = bridge.returncode
            # A cluster that is away is none of them: it may be restarting.
            if status == EXIT_INVALID_SECRET or (status == EXIT_CONFIG and not lived):
                return status
            lived = True
            if lost not in done:
                await pauses.after(status)

    def _read_again(self) -> None:
        logger.info("SIGHUP: reading %s again", self._settings.ai_models)
        for child in self._children:
            if child.stdin:
                child.stdin.write(READ_AGAIN)

    async def _child(
        self,
        *arguments: str,
        stdout: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        """Starts a Python process whose stdin ends with us.

        In a session of its own: Ctrl-C in a terminal reaches the supervisor alone, which then
        ends its children in order.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            stdin=PIPE,
            stdout=stdout,
            env={**without_secrets(), **(environment or {})},
            start_new_session=True,
        )
        self._children.add(process)
        return process

    async def _end(self, process: Process, *, patience_s: float) -> None:
        """Asks a child to end, and kills it when it does not."""
        self._children.discard(process)
        if process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), timeout=patience_s)
        except TimeoutError:
            logger.error("process %d does not end, killing it", process.pid)  # noqa: TRY400
            process.kill()
            await process.wait()


class _Pauses:
    """Before a child is started again: short after a healthy life, longer and longer if not."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pause_s = RESTART_FIRST_S
        self._since = asyncio.get_running_loop().time()

    async def after(self, status: int | None) -> None:
        clock = asyncio.get_running_loop().time
        if clock() - self._since > HEALTHY_S:
            self._pause_s = RESTART_FIRST_S
        logger.error(
            "%s ended with status %s; starting it again in %.0f s",
            self._name,
            status,
            self._pause_s,
        )
        await asyncio.sleep(self._pause_s)
        self._pause_s = min(self._pause_s * 2, RESTART_MAX_S)
        self._since = clock()
