"""Slots per model: a job gets one at once or soon, or is refused.

The orchestrator counts as well, so more jobs than slots come in few moments only: when a
registration with less has taken the place of one whose jobs still run, or when a replica has
died. Such a job waits for a moment. Longer would cost the worker its rank with gateways, which
another orchestrator might serve at once; a refusal costs nothing but this job.

A slot is free again as soon as the result is there, before it is uploaded: the orchestrator
counts a job as done when its answer arrives, and the next one may come in the same moment.
"""

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from cluster.ai_models import ModelKey
from cluster.capacity import Capacity
from cluster.errors import InsufficientCapacity

WAIT_S, WAITING_PER_SLOT = 2.0, 2
"""How long a job waits for a slot, and how many may."""


class Admission:
    """Counts the jobs in flight against the latest capacity."""

    def __init__(self) -> None:
        """Starts without capacity: everything is refused until the first `update`."""
        self._capacity = Capacity()
        self._in_flight: Counter[ModelKey] = Counter()
        self._waiting: defaultdict[ModelKey, deque[asyncio.Future[None]]] = defaultdict(deque)

    @property
    def in_flight(self) -> Mapping[ModelKey, int]:
        """Jobs that hold a slot, by model."""
        return self._in_flight

    def update(self, capacity: Capacity) -> None:
        """Takes a new snapshot. Jobs that already hold a slot keep it."""
        self._capacity = capacity
        for key in self._waiting:
            self._hand_out(key)

    def slots(self, key: ModelKey) -> int:
        """How many a model has."""
        return self._capacity.slots(key)

    @asynccontextmanager
    async def slot(self, key: ModelKey) -> AsyncIterator[None]:
        """Holds one slot of the model.

        Raises:
            InsufficientCapacity: none is free, or will be soon.
        """
        await self._take(key)
        try:
            yield
        finally:
            self._give_back(key)

    async def _take(self, key: ModelKey) -> None:
        slots, waiting = self._capacity.slots(key), self._waiting[key]
        if not slots:
            raise InsufficientCapacity(f"{key} has no replica now")
        taken = InsufficientCapacity(f"all {slots} slots of {key} are taken")
        if len(waiting) >= WAITING_PER_SLOT * slots:
            raise taken
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(granted)
        self._hand_out(key)
        try:
            async with asyncio.timeout(WAIT_S):
                await granted
        except BaseException as error:
            if not granted.cancelled():
                # Granted in the very moment in which it was given up.
                self._give_back(key)
            if isinstance(error, TimeoutError):
                raise taken from None
            raise

    def _give_back(self, key: ModelKey) -> None:
        self._in_flight[key] -= 1
        self._hand_out(key)

    def _hand_out(self, key: ModelKey) -> None:
        """Gives free slots to those who wait, the first come first."""
        waiting = self._waiting[key]
        while waiting and self._in_flight[key] < self._capacity.slots(key):
            granted = waiting.popleft()
            if not granted.done():
                self._in_flight[key] += 1
                granted.set_result(None)
