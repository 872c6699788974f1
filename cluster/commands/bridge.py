"""`livepeer-ray bridge`: the process that is the worker in the orchestrator's eyes."""

import asyncio
import contextlib
import functools
import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# Failed handshakes are reported by us, with the remedy; gRPC's own lines would double them.
# Must be set before grpc is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from cluster import logs, serve_client
from cluster.ai_models import AIModel, ModelKey
from cluster.ai_models_watch import LOOK_S, AIModelsWatch
from cluster.backends.containers import Containers
from cluster.backends.ray_serve import RayBackend
from cluster.backends.shared import Place, SharedBackend
from cluster.bridge.bridge import Bridge, Registration
from cluster.bridge.capabilities import hardware
from cluster.bridge.inputs import Inputs
from cluster.bridge.journal import Journal
from cluster.bridge.left_over import answer_left_over
from cluster.bridge.live_runner import LiveRunnerRegistration
from cluster.bridge.metrics import Metrics
from cluster.bridge.record import JobRecord, log_record
from cluster.bridge.registration import WorkerRegistration
from cluster.bridge.results import Delivery
from cluster.bridge.state import BridgeState, ContainerState, ModelState, state_endpoint
from cluster.bridge_settings import BridgeSettings
from cluster.capacity import CapacityWatch
from cluster.errors import InvalidSecret
from cluster.replica_gpus import gpus_by_model
from cluster.serve_config import on_ray
from cluster.settings import EXIT_INVALID_SECRET
from cluster.supervised import listen_to_the_supervisor
from deployments.hardware import GPU

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
    serve_client.connect(settings.ray_address)
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
    ray, shared = RayBackend(), SharedBackend()

    def models() -> tuple[AIModel, ...]:
        return on_ray(watch.current.models)

    def state() -> BridgeState:
        return BridgeState(
            models=_models(bridge, watch.current.models),
            registrations=[each.state for each in registrations],
            containers=_containers(containers, shared),
        )

    metrics = Metrics(read=state, journal=journal)

    def finished(record: JobRecord) -> None:
        log_record(record)
        metrics.finished(record)

    def gpus() -> Mapping[ModelKey, Sequence[GPU]]:
        return containers.with_gpus(gpus_by_model(serve_client.model_status(models())))

    async with (
        Inputs() as inputs,
        Delivery(secret=settings.orch_secret) as delivery,
        Containers() as containers,
        contextlib.AsyncExitStack() as stack,
    ):
        bridge = Bridge(
            backends={},
            inputs=inputs,
            delivery=delivery,
            deadlines=settings.deadlines,
            grace_s=settings.grace_s,
            journal=journal,
            on_finished=finished,
        )
        registrations: list[WorkerRegistration | LiveRunnerRegistration] = []
        doors: list[Registration] = []
        if settings.register.as_worker:
            registrations += [
                WorkerRegistration(
                    address=orchestrator.address,
                    secret=settings.orch_secret,
                    version=settings.advertise_version,
                    pin=orchestrator.fingerprint,
                    on_job=bridge.accept,
                    read_hardware=lambda: hardware(gpus()),
                )
                for orchestrator in settings.orchestrators
            ]
        if settings.register.over_http:
            from cluster.bridge.door import Door  # with a web server

            door = Door(
                bridge=bridge,
                secret=settings.orch_secret,
                url=settings.runner_url,
                gpus=lambda key: gpus().get(key, ()),
            )
            await stack.enter_async_context(door.listening(*settings.runner_listen))
            doors.append(door)
        if settings.register.as_live_runner:
            registrations += [
                LiveRunnerRegistration(
                    address=orchestrator.address,
                    secret=settings.orch_secret,
                    pin=orchestrator.fingerprint,
                    runner_url=door.runner_url,
                    price=lambda key: watch.current.live_runner_price(key),
                )
                for orchestrator in settings.orchestrators
            ]
        capacity = CapacityWatch(
            models=models(),
            read_status=serve_client.model_status,
            in_flight=lambda: bridge.in_flight,
            elsewhere=containers.capacity,
        )

        def take() -> None:
            """Serves what the file says now."""
            containers.configure(watch.current.models)
            places = containers.places()
            for key in (model.key for model in models()):
                slots = functools.partial(capacity.slots_on_ray, key)
                places.setdefault(key, []).append(Place(name="Ray", backend=ray, slots=slots))
            shared.serve(places)
            bridge.serve(dict.fromkeys(places, shared))
            capacity.configure(models())

        take()
        beside = (
            asyncio.create_task(_follow(watch, take, again)),
            asyncio.create_task(answer_left_over(journal, delivery)),
        )
        try:
            async with state_endpoint(settings.state_listen, state, metrics=metrics.text):
                await bridge.run(
                    registrations=registrations,
                    doors=doors,
                    snapshots=capacity.snapshots(),
                    stop=stop,
                )
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            journal.close()
    logger.info("bridge ended")


async def _follow(watch: AIModelsWatch, take: Callable[[], None], again: asyncio.Event) -> None:
    """Looks at the file now and then, and at once when asked to."""
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await again.wait()
        asked = again.is_set()
        again.clear()
        if await asyncio.to_thread(watch.look, again=asked):
            take()


def _models(bridge: Bridge, models: Sequence[AIModel]) -> list[ModelState]:
    warm = {model.key: model.warm for model in models}
    return [
        ModelState(
            pipeline=key.pipeline,
            model_id=key.model_id,
            warm=warm[key],
            slots=bridge.slots(key),
            in_flight=bridge.in_flight.get(key, 0),
        )
        for key in warm
    ]


def _containers(containers: Containers, shared: SharedBackend) -> list[ContainerState]:
    return [
        ContainerState(
            pipeline=container.model.pipeline,
            model_id=container.model.model_id,
            url=url,
            slots=container.slots(),
            in_flight=shared.in_flight(container.model.key, url),
            detail=container.health.why_not,
            runner_version=container.health.facts.version,
            gpus=[gpu.name for gpu in container.health.facts.gpus],
        )
        for container in containers
        if (url := container.model.url)
    ]


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
