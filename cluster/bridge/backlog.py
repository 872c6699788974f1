"""How many jobs an orchestrator may leave unanswered before nothing more is read from it."""

import asyncio

MAX_UNANSWERED = 20_000
"""Jobs of one orchestrator that have no answer yet, 4 KB each. Slots and queues hold fewer, so
that all the others are refusals on their way to one who sends jobs and takes no answers: nothing
more is read from it until it does, and TCP holds back what it sends."""


class Backlog:
    """The unanswered jobs of one orchestrator."""

    def __init__(self) -> None:
        """Starts empty."""
        self._jobs = 0
        self.room = asyncio.Event()
        """Set while there may be more."""
        self.room.set()

    def grow(self) -> None:
        """Counts a job that came."""
        self._jobs += 1
        if self._jobs >= MAX_UNANSWERED:
            self.room.clear()

    def shrink(self, _: object) -> None:
        """Counts a job that is answered."""
        self._jobs -= 1
        if self._jobs < MAX_UNANSWERED:
            self.room.set()
