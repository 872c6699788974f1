"""`livepeer-ray bridge`: the process that is the worker in the orchestrator's eyes."""

import asyncio
import logging
import os
import signal

# Failed handshakes are reported by us, with the remedy; gRPC's own lines would double them.
# Must be set before grpc is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from cluster import logs, serve_client
from cluster.ai_models import AIModel, load_ai_models
from cluster.backends.ray_serve import RayBackend
from cluster.bridge.bridge import Bridge
from cluster.bridge.capabilities import hardware
from cluster.bridge.inputs import Inputs
from cluster.bridge.registration import WorkerRegistration
from cluster.bridge.results import Delivery
from cluster.capacity import CapacityWatch
from cluster.errors import InvalidSecret
from cluster.serve_config import on_ray
from cluster.settings import EXIT_INVALID_SECRET, BridgeSettings
from cluster.supervised import when_the_supervisor_ends

logger = logging.getLogger(__name__)


def run(settings: BridgeSettings, *, log_json: bool, supervised: bool = False) -> int:
    """Runs until SIGTERM or SIGINT and returns the exit status.

    Args:
        settings: of the bridge.
        log_json: one JSON object a line.
        supervised: end also when stdin does, which is when the supervisor is gone.

    Raises:
        ConfigError: the aiModels.json has problems.
        ClusterUnreachable: there is no Ray cluster.
    """
    logs.configure(as_json=log_json)
    models = load_ai_models(settings.ai_models)
    for warning in models.warnings:
        logger.warning("%s", warning)
    for model in models.models:
        if model.url:
            logger.warning("%s: external containers are not served yet, skipped", model.key)
    serve_client.connect(settings.ray_address)
    try:
        asyncio.run(_run(settings, on_ray(models.models), supervised=supervised))
    except InvalidSecret as error:
        logger.error("%s", error)  # noqa: TRY400 - a setting is wrong, not the program
        return EXIT_INVALID_SECRET
    return 0


async def _run(settings: BridgeSettings, models: tuple[AIModel, ...], *, supervised: bool) -> None:
    stop = _stop_event(supervised=supervised)
    backend = RayBackend()
    async with Inputs() as inputs, Delivery(secret=settings.orch_secret) as delivery:
        bridge = Bridge(
            backends={model.key: backend for model in models},
            inputs=inputs,
            delivery=delivery,
            deadlines=settings.deadlines,
            grace_s=settings.grace_s,
        )
        registrations = [
            WorkerRegistration(
                address=orchestrator.address,
                secret=settings.orch_secret,
                version=settings.advertise_version,
                pin=orchestrator.fingerprint,
                on_job=bridge.accept,
                read_hardware=lambda: hardware(
                    serve_client.gpus_by_model(serve_client.model_status(models))
                ),
            )
            for orchestrator in settings.orchestrators
        ]
        watch = CapacityWatch(models=models, read_status=lambda: serve_client.model_status(models))
        await bridge.run(registrations=registrations, snapshots=watch.snapshots(), stop=stop)
    logger.info("bridge ended")


def _stop_event(*, supervised: bool) -> asyncio.Event:
    """Set on SIGTERM, SIGINT and, where there is a supervisor, at its end."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if supervised:
        when_the_supervisor_ends(lambda: loop.call_soon_threadsafe(stop.set))
    return stop
