"""What the worker can do now: a snapshot of slots per model, and the watch that yields them."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cluster.ai_models import AIModel, ModelKey
from cluster.cold import TURN_S, Activity, Scaling, cold_replicas, replicas_together

logger = logging.getLogger(__name__)

REBUILD_S = 5.0
"""How long an application may look empty before we believe it. While Serve rebuilds one, its
deployments are missing from the status for up to 2.7 s (measured, Ray 2.60); after a restart of
its controller the replicas have to be found again."""

SILENCE_S = 60.0
"""How long Serve may say nothing before its models count as gone. Replicas outlive their
controller, and Ray restarts it within seconds."""

INTERVAL_S = 0.5
"""Between two looks at Serve, of 6 ms each in its controller. Long polling, which Serve has for
its own proxies, would notice a change 0.25 s earlier on average and is a private API."""

FAILED = frozenset({"DEPLOY_FAILED", "UNHEALTHY"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """One model's application, as Serve sees it now."""

    state: str
    """Serve's application status, or NOT_DEPLOYED."""
    message: str = ""
    """Why it failed, when it failed."""
    running: int = 0
    """Replicas that take requests: those `AT_WORK` (deployments.replica_states)."""
    rebuilding: bool = False
    """For a moment the application does not show what runs: see `REBUILD_S`."""
    replicas: frozenset[tuple[str, str]] = field(default_factory=frozenset)
    """The running ones: names of their actors and ids of their nodes."""
    scaling: Scaling | None = None
    """None for a fixed number of replicas."""

    @property
    def failed(self) -> bool:
        """Serve has given up, or a replica is unhealthy."""
        return self.state in FAILED


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCapacity:
    """What one model can take at once."""

    slots: int
    """Jobs at the same time, over all replicas and containers."""
    warm: bool
    runner_version: str = ""
    """Of external containers, the lowest; empty where there is none."""
    shared: int = 0
    """How many of the slots are on cards that are counted for other models too: whoever is asked
    first gets them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """A snapshot; models without a slot are not in it."""

    models: Mapping[ModelKey, ModelCapacity] = field(default_factory=dict)

    def slots(self, key: ModelKey) -> int:
        """Slots of one model, 0 for one that is not served."""
        model = self.models.get(key)
        return model.slots if model else 0

    def growth_over(self, other: "Capacity") -> "Capacity | None":
        """What to add to another capacity to get this one; None where it takes more than adding."""
        added: dict[ModelKey, ModelCapacity] = {}
        for key, model in self.models.items():
            before = other.models.get(key, replace(model, slots=0))
            if replace(before, slots=model.slots) != model or before.slots > model.slots:
                return None
            if model.slots > before.slots:
                added[key] = replace(model, slots=model.slots - before.slots)
        return Capacity(models=added) if other.models.keys() <= self.models.keys() else None

    def plus(self, other: "Capacity") -> "Capacity":
        """Returns both together, for models that are served in several places."""
        models = dict(self.models)
        for key, more in other.models.items():
            model = models.get(key, replace(more, slots=0))
            models[key] = replace(
                model,
                slots=model.slots + more.slots,
                shared=model.shared + more.shared,
                runner_version=more.runner_version or model.runner_version,
            )
        return Capacity(models=models)

    def each_alone(self) -> "Capacity":
        """Every model as if nobody asked for another one."""
        return Capacity(
            models={key: replace(model, shared=0) for key, model in self.models.items()}
        )

    def together(self) -> "Capacity":
        """What all models can have at the same time, those that share a card in turn."""
        return Capacity(
            models={
                key: replace(model, slots=model.slots - model.shared, shared=0)
                for key, model in self.models.items()
                if model.slots > model.shared
            }
        )

    def __bool__(self) -> bool:
        return bool(self.models)

    def __str__(self) -> str:
        parts = [f"{key}: {model.slots}" for key, model in self.models.items()]
        return ", ".join(parts) or "nothing"


def capacity_of(
    models: Sequence[AIModel],
    status: Mapping[ModelKey, ModelStatus],
    at_work: Collection[ModelKey] = (),
    *,
    turn: int = 0,
) -> Capacity:
    """Adds up replicas into slots.

    A cold model has the slots of its wanted replicas before it has a replica, for the first job
    starts one, where there is a card for it (cluster/cold.py); not when it is not deployed or
    has failed. A warm model without a RUNNING replica has none.

    Args:
        models: the configured models.
        status: those that Serve knows.
        at_work: the models that have jobs.
        turn: which of the cold models has a card that several of them could have; counted up.
    """
    served = {model.key: model for model in models if model.key in status}
    scaled = {
        key: scaling
        for key in served
        if (scaling := status[key].scaling) and not status[key].failed
    }
    replicas = {key: status[key].running for key in served}
    for key, scaling in scaled.items():
        if not served[key].warm:
            others = [scaled[other] for other in scaled if other != key and other in at_work]
            replicas[key] = cold_replicas(served[key], scaling, others)
    together = replicas | replicas_together(scaled, replicas, at_work, turn=turn)
    return Capacity(
        models={
            key: ModelCapacity(
                slots=replicas[key] * model.ray.max_ongoing_requests,
                warm=model.warm,
                shared=(replicas[key] - together[key]) * model.ray.max_ongoing_requests,
            )
            for key, model in served.items()
            if replicas[key]
        }
    )


class CapacityWatch:
    """Polls Serve, adds what is elsewhere, and yields a snapshot whenever the sums change."""

    def __init__(
        self,
        *,
        models: Sequence[AIModel],
        read_status: Callable[[Sequence[AIModel]], Mapping[ModelKey, ModelStatus]],
        interval_s: float = INTERVAL_S,
        in_flight: Callable[[], Mapping[ModelKey, int]] = dict,
        elsewhere: Callable[[], Capacity] = Capacity,
    ) -> None:
        """Takes the models and how to ask Serve for them.

        Args:
            models: the configured models that run on Ray.
            read_status: blocking; the status of those of the models that Serve knows, run in a
                thread.
            interval_s: between two looks.
            in_flight: the jobs of each model.
            elsewhere: the capacity that is not Serve's.
        """
        self._on_ray = Capacity()
        self._elsewhere = elsewhere
        self._models = tuple(models)
        self._read_status = read_status
        self._interval_s = interval_s
        self._activity = Activity(in_flight)
        self._configured = asyncio.Event()
        self._status: dict[ModelKey, ModelStatus] = {}
        self._silent_since: float | None = None
        self._rebuilding_since: dict[ModelKey, float] = {}
        self._said: dict[ModelKey, str] = {}

    def configure(self, models: Sequence[AIModel]) -> None:
        """Replaces the configured models on Ray; to be called in the event loop.

        The next snapshot follows at once. What is known of models that stay is kept; models that
        go are forgotten, and with them their capacity.
        """
        self._models = tuple(models)
        keys = {model.key for model in models}
        for known in (self._status, self._rebuilding_since, self._said):
            for key in known.keys() - keys:
                del known[key]
        self._configured.set()

    def slots_on_ray(self, key: ModelKey) -> int:
        """How many of a model's slots in the last snapshot are Serve's."""
        return self._on_ray.slots(key)

    async def snapshots(self) -> AsyncIterator[Capacity]:
        """Yields the capacity now and then every change, for ever."""
        last: Capacity | None = None
        while True:
            self._configured.clear()
            self._on_ray = await self._look()
            capacity = self._on_ray.plus(self._elsewhere())
            if capacity != last:
                last = capacity
                yield capacity
            await self._pause()

    async def _pause(self) -> None:
        """Waits until it is time to look again, or something was configured."""
        # Not wait_for: in Python 3.11 it can swallow a cancellation, and with it the end.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._interval_s):
                await self._configured.wait()

    async def _look(self) -> Capacity:
        now = asyncio.get_running_loop().time()
        models = self._models
        try:
            status = await asyncio.to_thread(self._read_status, models)
        except Exception as error:  # noqa: BLE001 - whatever Ray raises while it restarts
            self._silence(error, now)
        else:
            if self._silent_since is not None:
                logger.info("Serve answers again")
            self._silent_since = None
            # Models that were configured meanwhile were not asked for: theirs is the next look.
            for model in models:
                if model in self._models:
                    self._see(model.key, status.get(model.key), now)
        return capacity_of(
            self._models, self._status, self._activity.at_work(now), turn=int(now // TURN_S)
        )

    def _silence(self, error: Exception, now: float) -> None:
        """Serve does not answer: its replicas go on, so for a while we believe what we know."""
        if self._silent_since is None:
            self._silent_since = now
            logger.warning(
                "Serve does not answer (%s); going on with what it said last",
                type(error).__name__,
            )
        if self._status and now - self._silent_since > SILENCE_S:
            logger.error("Serve does not answer for %.0f s: no capacity", now - self._silent_since)
            self._status.clear()

    def _see(self, key: ModelKey, seen: ModelStatus | None, now: float) -> None:
        if seen is None:
            self._status.pop(key, None)
            self._say(key, ModelStatus(state="not deployed"))
            return
        if seen.rebuilding:
            since = self._rebuilding_since.setdefault(key, now)
            if now - since < REBUILD_S:
                return
        else:
            self._rebuilding_since.pop(key, None)
        self._status[key] = seen
        self._say(key, seen)

    def _say(self, key: ModelKey, seen: ModelStatus) -> None:
        """Logs a model's state when it changes; its message names what is broken."""
        if self._said.get(key) == seen.state:
            return
        self._said[key] = seen.state
        if seen.failed:
            logger.error("%s: %s: %s", key, seen.state, seen.message)
        else:
            logger.info("%s: %s, %d replicas running", key, seen.state, seen.running)
