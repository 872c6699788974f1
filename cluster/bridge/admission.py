"""Slots per model: a job gets one, waits a moment for one, or is refused.

A slot is free again as soon as the result is there, before it is uploaded: the orchestrator
counts a job as done when its answer arrives, and the next one may come in the same moment.

More jobs than slots come all the same: a stream gives its capacity back at the orchestrator when
it starts, and two registrations stand side by side while capacity changes. They wait, few and
not for long; what would wait longer is better off at another orchestrator.

Several orchestrators share the slots: a free one goes to whoever holds the fewest, and what one
of them sends too much waits in a queue of its own.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Hashable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cluster.ai_models import ModelKey
from cluster.capacity import Capacity
from cluster.errors import InsufficientCapacity

WAIT_S = 5.0
"""An image long. A refused job is served elsewhere, and gateways prefer the fast."""

MIN_WAITING = 4


def may_wait(slots: int) -> int:
    """How many jobs of a model with so many slots may wait for one, for each orchestrator.

    As many as a change of capacity can bring at once, and never fewer than a few.
    """
    return max(slots, MIN_WAITING)


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    source: Hashable
    turn: "asyncio.Future[None]"


class Admission:
    """Counts the jobs in flight against the latest capacity."""

    def __init__(self, *, wait_s: float = WAIT_S) -> None:
        """Starts without capacity: everything is refused until the first `update`.

        Args:
            wait_s: for a slot.
        """
        self._wait_s = wait_s
        self._capacity = Capacity()
        self._in_flight: Counter[ModelKey] = Counter()
        self._held: Counter[tuple[ModelKey, Hashable]] = Counter()
        self._waiting: dict[ModelKey, list[_Waiter]] = {}

    def update(self, capacity: Capacity) -> None:
        """Takes a new snapshot. Jobs that already hold a slot keep it."""
        self._capacity = capacity
        for key in list(self._waiting):
            self._admit(key)

    @property
    def in_flight(self) -> Mapping[ModelKey, int]:
        """Jobs that hold a slot, by model."""
        return self._in_flight

    def slots(self, key: ModelKey) -> int:
        """How many a model has."""
        return self._capacity.slots(key)

    @asynccontextmanager
    async def slot(self, key: ModelKey, *, source: Hashable = None) -> AsyncIterator[None]:
        """Holds one slot of the model.

        Args:
            key: the model.
            source: who sent the job, an orchestrator's address.

        Raises:
            InsufficientCapacity: none is free or becomes free in time.
        """
        if self._in_flight[key] < self._capacity.slots(key):
            self._take(key, source)
        else:
            await self._wait(key, source)
        try:
            yield
        finally:
            self._give_back(key, source)

    def _take(self, key: ModelKey, source: Hashable) -> None:
        self._in_flight[key] += 1
        self._held[key, source] += 1

    def _give_back(self, key: ModelKey, source: Hashable) -> None:
        self._in_flight[key] -= 1
        self._held[key, source] -= 1
        self._admit(key)

    async def _wait(self, key: ModelKey, source: Hashable) -> None:
        """Returns with a slot."""
        slots = self._capacity.slots(key)
        if not slots:
            raise InsufficientCapacity(f"{key} has no replica now")
        queue = self._waiting.setdefault(key, [])
        ahead = sum(waiter.source == source for waiter in queue)
        if ahead >= may_wait(slots):
            raise InsufficientCapacity(f"all {slots} slots of {key} are taken, {ahead} jobs wait")
        waiter = _Waiter(source, asyncio.get_running_loop().create_future())
        queue.append(waiter)
        try:
            await asyncio.wait({waiter.turn}, timeout=self._wait_s)
        except asyncio.CancelledError:
            if waiter.turn.done():
                # It became ours in the same moment: for the next one.
                self._give_back(key, source)
            raise
        finally:
            if not waiter.turn.done():
                queue.remove(waiter)
        if not waiter.turn.done():
            raise InsufficientCapacity(
                f"all {slots} slots of {key} were taken for {self._wait_s:g} s"
            )

    def _admit(self, key: ModelKey) -> None:
        """Gives free slots to those who wait: to who holds the fewest, in order of arrival."""
        queue = self._waiting.get(key, [])
        while queue and self._in_flight[key] < self._capacity.slots(key):
            waiter = min(queue, key=lambda waiter: self._held[key, waiter.source])
            queue.remove(waiter)
            self._take(key, waiter.source)
            waiter.turn.set_result(None)
        if not queue:
            self._waiting.pop(key, None)
