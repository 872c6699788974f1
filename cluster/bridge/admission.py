"""Slots per model: a job gets one or is refused at once.

A slot is free again as soon as the result is there, before it is uploaded: the orchestrator
counts a job as done when its answer arrives, and the next one may come in the same moment.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from cluster.ai_models import ModelKey
from cluster.capacity import Capacity
from cluster.errors import InsufficientCapacity


class Admission:
    """Counts the jobs in flight against the latest capacity."""

    def __init__(self) -> None:
        """Starts without capacity: everything is refused until the first `update`."""
        self._capacity = Capacity()
        self._in_flight: Counter[ModelKey] = Counter()

    @property
    def in_flight(self) -> Mapping[ModelKey, int]:
        """Jobs that hold a slot, by model."""
        return self._in_flight

    def update(self, capacity: Capacity) -> None:
        """Takes a new snapshot. Jobs that already hold a slot keep it."""
        self._capacity = capacity

    @contextmanager
    def slot(self, key: ModelKey) -> Iterator[None]:
        """Holds one slot of the model.

        Raises:
            InsufficientCapacity: none is free.
        """
        slots = self._capacity.slots(key)
        if self._in_flight[key] >= slots:
            if slots:
                raise InsufficientCapacity(f"all {slots} slots of {key} are taken")
            raise InsufficientCapacity(f"{key} has no replica now")
        self._in_flight[key] += 1
        try:
            yield
        finally:
            self._in_flight[key] -= 1
