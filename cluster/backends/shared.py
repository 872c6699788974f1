"""Models that are served in several places: each job goes to the one with the most free slots.

A place is the Ray cluster or one external container. How many jobs run where is counted here and
outlives changes of the aiModels.json.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from cluster.ai_models import ModelKey
from cluster.backends import Backend
from cluster.errors import InsufficientCapacity, ReplicaLost
from deployments.schemas.base import Chunk, Completed, Request, Result

AVOID_S = 10.0
"""A place that lost a job is the last choice for as long: the job that is tried again should not
meet the same end, and where it was is only now being looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a model is served."""

    name: str
    """Its own among the places of the model."""
    backend: Backend
    slots: Callable[[], int]
    """How many it has now."""


class SharedBackend:
    """The backend of all models; each is in one place or in several."""

    def __init__(self) -> None:
        """Serves nothing until `serve`."""
        self._places: Mapping[ModelKey, Sequence[Place]] = {}
        self._in_flight: Counter[tuple[ModelKey, str]] = Counter()
        self._avoid_until: dict[tuple[ModelKey, str], float] = {}

    def serve(self, places: Mapping[ModelKey, Sequence[Place]]) -> None:
        """Takes other models and places. Jobs that run go on."""
        self._places = places

    def in_flight(self, key: ModelKey, name: str) -> int:
        """Jobs of a model in one place."""
        return self._in_flight[key, name]

    async def run(self, key: ModelKey, request: Request, *, timeout_s: float) -> Completed[Result]:
        """Runs one request; see `Backend.run`."""
        with self._at_a_place(key) as place:
            return await place.backend.run(key, request, timeout_s=timeout_s)

    async def stream(
        self, key: ModelKey, request: Request, *, timeout_s: float
    ) -> AsyncGenerator[Chunk, None]:
        """Streams one answer; see `Backend.stream`."""
        with self._at_a_place(key) as place:
            chunks = place.backend.stream(key, request, timeout_s=timeout_s)
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk

    @contextmanager
    def _at_a_place(self, key: ModelKey) -> Iterator[Place]:
        place = self._choose(key)
        where = key, place.name
        self._in_flight[where] += 1
        try:
            yield place
        except ReplicaLost:
            self._avoid_until[where] = asyncio.get_running_loop().time() + AVOID_S
            raise
        finally:
            self._in_flight[where] -= 1
            if not self._in_flight[where]:
                del self._in_flight[where]

    def _choose(self, key: ModelKey) -> Place:
        places = self._places.get(key, ())
        if len(places) == 1:
            return places[0]
        able = [place for place in places if place.slots()]
        if not able:
            raise InsufficientCapacity(f"{key} has no replica now")
        return min(able, key=lambda place: self._cost(key, place))

    def _cost(self, key: ModelKey, place: Place) -> tuple[bool, bool, int]:
        """The lowest is the best: one with a free slot, not avoided, with the most free slots."""
        where = key, place.name
        free = place.slots() - self._in_flight[where]
        avoided = self._avoid_until.get(where, 0.0) > asyncio.get_running_loop().time()
        return free <= 0, avoided, -free
