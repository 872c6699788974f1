"""How long a request may go on, told to the thread that computes it."""

import time
from collections.abc import Sequence


class Cancelled(Exception):
    """Raised in the model thread when the caller is gone or the request's time is over."""


class TimeLeft:
    """How long a request may go on. One thread shortens it, another one looks."""

    def __init__(self, *, timeout_s: float) -> None:
        self._ends_at = time.monotonic() + timeout_s

    def end(self) -> None:
        """Ends it now: nobody waits for the request any more."""
        self._ends_at = min(self._ends_at, time.monotonic())

    @property
    def seconds(self) -> float:
        """What is left; below 0 it tells since when there is none."""
        return self._ends_at - time.monotonic()


def longest(lefts: Sequence[TimeLeft]) -> float:
    """Returns the seconds that the last of them has left."""
    return max(left.seconds for left in lefts)
