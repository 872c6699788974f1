"""`livepeer-ray bridge`: the process that is the worker in the orchestrator's eyes."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

# Failed handshakes are reported by us, with the remedy; gRPC's own lines would double them.
# Must be set before grpc is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from cluster import logs, ray_cluster
from cluster.ai_models_watch import LOOK_S, AIModelsWatch
from cluster.backends.containers import Containers
from cluster.bridge.inputs import Inputs
from cluster.bridge.journal import Journal
from cluster.bridge.left_over import answer_left_over
from cluster.bridge.parts import Parts
from cluster.bridge.results import Delivery
from cluster.bridge.state import state_endpoint
from cluster.bridge_settings import BridgeSettings
from cluster.errors import InvalidSecret
from cluster.settings import EXIT_INVALID_SECRET
from cluster.supervised import listen_to_the_supervisor

logger = logging.getLogger(__name__)


def run(
    settings: BridgeSettings,
    *,
    journal: Journal,
    log_json: bool,
    supervised: bool = False,
    last_good: Path | None = None,
) -> int:
    """Runs until SIGTERM or SIGINT and returns the exit status.

    Args:
        settings: of the bridge.
        journal: of the jobs that are not answered yet; closed at the end.
        log_json: one JSON object a line.
        supervised: by `livepeer-ray start`: end also when that does, and leave it to the
            deployer to complain about the aiModels.json.
        last_good: a copy of the last valid one, for when it is invalid now.

    Raises:
        ConfigError: the aiModels.json has problems.
        ClusterUnreachable: there is no Ray cluster.
    """
    logs.configure(as_json=log_json)
    watch = AIModelsWatch(settings.ai_models, last_good=last_good, quiet=supervised)
    ray_cluster.connect(settings.ray_address)
    try:
        asyncio.run(_run(settings, watch, journal, supervised=supervised))
    except InvalidSecret as error:
        logger.error("%s", error)  # noqa: TRY400 - a setting is wrong, not the program
        return EXIT_INVALID_SECRET
    return 0


async def _run(
    settings: BridgeSettings, watch: AIModelsWatch, journal: Journal, *, supervised: bool
) -> None:
    stop, again = _requests(supervised=supervised)
    async with (
        Inputs() as inputs,
        Delivery(secret=settings.orch_secret) as delivery,
        Containers() as containers,
    ):
        parts = Parts(
            settings,
            watch=watch,
            journal=journal,
            inputs=inputs,
            delivery=delivery,
            containers=containers,
        )
        parts.take()
        try:
            async with (
                parts.door_open() as doors,
                _beside(follow(watch, parts.take, again), answer_left_over(journal, delivery)),
                state_endpoint(settings.state_listen, parts.state, metrics=parts.metrics.text),
            ):
                await parts.bridge.run(
                    registrations=parts.registrations,
                    doors=doors,
                    snapshots=parts.capacity.snapshots(),
                    stop=stop,
                )
        finally:
            journal.close()
    logger.info("bridge ended")


@contextlib.asynccontextmanager
async def _beside(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Does these while the context is open."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def follow(watch: AIModelsWatch, take: Callable[[], None], again: asyncio.Event) -> None:
    """Looks at the file now and then, and at once when asked to."""
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await again.wait()
        asked = again.is_set()
        again.clear()
        try:
            if await asyncio.to_thread(watch.look, again=asked):
                take()
        except Exception:
            # A bug; the bridge works on, and the next change is looked at all the same.
            logger.exception("the change of the aiModels.json is not taken")


def _requests(*, supervised: bool) -> tuple[asyncio.Event, asyncio.Event]:
    """To end: on SIGTERM, SIGINT and at the end of a supervisor. To read again: on SIGHUP."""
    stop, again = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, again.set)
    if supervised:
        listen_to_the_supervisor(
            read_again=lambda: loop.call_soon_threadsafe(again.set),
            end=lambda: loop.call_soon_threadsafe(stop.set),
        )
    return stop, again
