"""The parts of a bridge put together: who is told what, and who asks whom.

A reader who wants to know how a part gets its capacity, its models or its facts finds it here; how
the parts are run and ended, in `cluster.commands.bridge`.
"""

import contextlib
import functools
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING

from cluster import serve_client
from cluster.ai_models import AIModel, ModelKey
from cluster.ai_models_watch import AIModelsWatch
from cluster.backends.containers import Containers
from cluster.backends.ray_serve import RayBackend
from cluster.backends.shared import Place, SharedBackend
from cluster.bridge.bridge import Bridge, Registration
from cluster.bridge.capabilities import hardware
from cluster.bridge.inputs import Inputs
from cluster.bridge.journal import Journal
from cluster.bridge.live_runner import LiveRunnerRegistration
from cluster.bridge.metrics import Metrics
from cluster.bridge.record import JobRecord, log_record
from cluster.bridge.registration import WorkerRegistration
from cluster.bridge.results import Delivery
from cluster.bridge.state import BridgeState, ContainerState, ModelState
from cluster.bridge_settings import BridgeSettings
from cluster.capacity import CapacityWatch
from cluster.replica_gpus import gpus_by_model
from cluster.serve_config import on_ray
from deployments.hardware import GPU

if TYPE_CHECKING:
    from cluster.bridge.door import Door


class Parts:
    """One bridge's."""

    def __init__(
        self,
        settings: BridgeSettings,
        *,
        watch: AIModelsWatch,
        journal: Journal,
        inputs: Inputs,
        delivery: Delivery,
        containers: Containers,
    ) -> None:
        """Makes the others; none does anything yet.

        Args:
            settings: of the bridge.
            watch: what is to be served.
            journal: of the jobs that are not answered yet.
            inputs: an open one.
            delivery: an open one.
            containers: open ones.
        """
        self._settings = settings
        self._watch = watch
        self._containers = containers
        self._ray, self._shared = RayBackend(), SharedBackend()
        self.metrics = Metrics(read=self.state, journal=journal)
        self.bridge = Bridge(
            backends={},
            inputs=inputs,
            delivery=delivery,
            deadlines=settings.deadlines,
            grace_s=settings.grace_s,
            journal=journal,
            on_finished=self._finished,
        )
        self.capacity = CapacityWatch(
            models=self._on_ray,
            read_status=serve_client.model_status,
            in_flight=lambda: self.bridge.in_flight,
            elsewhere=containers.capacity,
        )
        self._door = self._make_door() if settings.register.over_http else None
        self._live_runners = self._as_live_runner()
        self.registrations: list[WorkerRegistration | LiveRunnerRegistration] = [
            *self._as_worker(),
            *self._live_runners,
        ]

    @property
    def _on_ray(self) -> tuple[AIModel, ...]:
        return on_ray(self._watch.current.models)

    def take(self) -> None:
        """Serves what the file says now."""
        models = self._on_ray
        self._containers.configure(self._watch.current.models)
        places = self._containers.places()
        for key in (model.key for model in models):
            slots = functools.partial(self.capacity.slots_on_ray, key)
            places.setdefault(key, []).append(Place(name="Ray", backend=self._ray, slots=slots))
        self._shared.serve(places)
        self.bridge.serve(dict.fromkeys(places, self._shared))
        self.capacity.configure(models)
        prices = {key: self._watch.current.live_runner_price(key) for key in places}
        for each in self._live_runners:
            each.configure(prices)

    def state(self) -> BridgeState:
        """For `livepeer-ray status` and the metrics."""
        return BridgeState(
            models=_models(self.bridge, self._watch.current.models),
            registrations=[each.state for each in self.registrations],
            containers=_containers(self._containers, self._shared),
        )

    @contextlib.asynccontextmanager
    async def door_open(self) -> AsyncIterator[Sequence[Registration]]:
        """Yields what takes requests over HTTP, if anything does, while it listens."""
        if self._door is None:
            yield ()
            return
        async with self._door.listening(*self._settings.runner_listen):
            yield (self._door,)

    def _finished(self, record: JobRecord) -> None:
        log_record(record)
        self.metrics.finished(record)

    def _gpus(self) -> Mapping[ModelKey, Sequence[GPU]]:
        """Blocking."""
        return self._containers.with_gpus(gpus_by_model(serve_client.model_status(self._on_ray)))

    def _make_door(self) -> "Door":
        from cluster.bridge.door import Door  # with a web server

        return Door(
            bridge=self.bridge,
            secret=self._settings.orch_secret,
            url=self._settings.runner_url,
            gpus=lambda key: self._gpus().get(key, ()),
        )

    def _as_worker(self) -> list[WorkerRegistration]:
        settings = self._settings
        return [
            WorkerRegistration(
                address=orchestrator.address,
                secret=settings.orch_secret,
                version=settings.advertise_version,
                pin=orchestrator.fingerprint,
                on_job=self.bridge.accept,
                read_hardware=lambda: hardware(self._gpus()),
            )
            for orchestrator in settings.orchestrators
            if settings.register.as_worker
        ]

    def _as_live_runner(self) -> list[LiveRunnerRegistration]:
        settings, door = self._settings, self._door
        return [
            LiveRunnerRegistration(
                address=orchestrator.address,
                secret=settings.orch_secret,
                pin=orchestrator.fingerprint,
                runner_url=door.runner_url,
            )
            for orchestrator in settings.orchestrators
            if settings.register.as_live_runner and door
        ]


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
