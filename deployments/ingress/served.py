"""The models that are served now, their health and their free slots.

What is known of the replicas is watched and at hand: no request waits for a look at them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from deployments.ingress.config import ModelKey, ServedModel
from deployments.ingress.errors import NotServed, Overloaded, WrongModel


class Health(StrEnum):
    """ai-runner's words."""

    LOADING = "LOADING"
    OK = "OK"
    IDLE = "IDLE"
    """Without a replica, which the first request starts."""
    ERROR = "ERROR"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """An application as Serve knows it."""

    running: int = 0
    """Replicas that take requests."""
    starting: int = 0
    failed: bool = False
    """Serve starts no more of them."""
    rebuilding: bool = False
    """For a moment, 2.7 s at most, Serve does not show what runs (measured, Ray 2.60)."""


class Served:
    """The configured models, what was seen of them last and what they are at."""

    def __init__(self) -> None:
        """Serves nothing yet; see `configure`."""
        self._models: dict[ModelKey, ServedModel] = {}
        self._seen: Mapping[str, Seen] = {}
        self._in_flight: Counter[ModelKey] = Counter()

    def configure(self, models: Sequence[ServedModel]) -> None:
        """Replaces the models. Requests to those that go on are finished."""
        self._models = {model.key: model for model in models}

    def see(self, seen: Mapping[str, Seen]) -> None:
        """Takes what Serve says, by application."""
        self._seen = {
            app: self._seen.get(app, now) if now.rebuilding else now for app, now in seen.items()
        }

    def choose(self, pipeline: str, *, asked: str, base: str | None) -> ServedModel:
        """Returns the model that a request is for.

        Args:
            pipeline: its pipeline.
            asked: the model that its body names, empty for none.
            base: the model of its address; None at the root, where the body decides.

        Raises:
            WrongModel: the body does not name one of the models at the address.
            NotServed: there is no such address.
        """
        if base is not None:
            model = self.at(ModelKey(pipeline, base))
            if asked not in ("", base):
                raise WrongModel(f"pipeline configured with {base} but called with {asked}.")
            return model
        there = {key.model_id: m for key, m in self._models.items() if key.pipeline == pipeline}
        if not there:
            raise NotServed(f"no model of {pipeline} is served here")
        if asked:
            if asked not in there:
                raise WrongModel(
                    f"pipeline {pipeline} configured with {', '.join(there)} but called with "
                    f"{asked}."
                )
            return there[asked]
        if len(there) > 1:
            raise WrongModel(f"model_id: say which of {', '.join(there)}")
        return next(iter(there.values()))

    def at(self, key: ModelKey) -> ServedModel:
        """Returns the model of an address.

        Raises:
            NotServed: there is none.
        """
        if key not in self._models:
            raise NotServed(f"{key} is not served here")
        return self._models[key]

    @property
    def models(self) -> Sequence[ServedModel]:
        """All of them."""
        return tuple(self._models.values())

    def health(self, model: ServedModel) -> Health:
        """Tells the health of a model."""
        seen = self._seen.get(model.app, Seen())
        if seen.running:
            return Health.OK
        if seen.failed:
            return Health.ERROR
        if model.cold and model.app in self._seen and not seen.starting:
            return Health.IDLE
        return Health.LOADING

    def overall_health(self) -> Health:
        """Tells the health of all models together: the best that a caller can hope for."""
        healths = {self.health(model) for model in self._models.values()}
        order = (Health.OK, Health.LOADING, Health.IDLE, Health.ERROR)
        return next((health for health in order if health in healths), Health.IDLE)

    @contextmanager
    def slot(self, model: ServedModel) -> Iterator[None]:
        """Holds one slot of the model.

        Raises:
            Overloaded: none is free.
        """
        slots = self._slots(model)
        if self._in_flight[model.key] >= slots:
            raise Overloaded(
                f"all {slots} slots of {model.key} are taken"
                if slots
                else f"{model.key} has no replica now"
            )
        self._in_flight[model.key] += 1
        try:
            yield
        finally:
            self._in_flight[model.key] -= 1

    def _slots(self, model: ServedModel) -> int:
        """Requests that it takes at once; one that has no replica yet takes the first ones."""
        seen = self._seen.get(model.app, Seen())
        replicas = seen.running
        if model.cold and model.app in self._seen and not seen.failed:
            replicas = max(replicas, 1)
        return replicas * model.slots
