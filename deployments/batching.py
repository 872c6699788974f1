"""The requests that wait for a replica's model, and which of them share a computation.

Nobody is kept waiting for company: when the model is free, the request that came first is computed
at once, together with those that wait at that moment and agree with it.
"""

import threading
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from deployments.schemas.base import Request
from deployments.time_left import TimeLeft

RequestT = TypeVar("RequestT", bound=Request)
RawT = TypeVar("RawT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """On which terms a request shares a computation."""

    kind: Hashable
    """Equal for requests that can be computed together."""
    size: int
    """In the replica's own unit."""
    limit: int
    """What the sizes of requests that are computed together with this one may add up to."""


@dataclass(eq=False, slots=True, kw_only=True)
class Waiting(Generic[RequestT, RawT]):
    """One request on its way through the model."""

    request: RequestT
    left: TimeLeft
    done: "Future[tuple[float, RawT]]" = field(default_factory=Future)
    """When its computation began and what came out. Cancelled when its caller is gone."""


class WaitingLine(Generic[RequestT, RawT]):
    """Requests in the order of their arrival. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Waiting[RequestT, RawT]] = deque()

    def join(self, waiting: Waiting[RequestT, RawT]) -> None:
        """Adds one at the end."""
        with self._lock:
            self._waiting.append(waiting)

    def leave(self, share: Callable[[RequestT], Share | None]) -> list[Waiting[RequestT, RawT]]:
        """Takes the first one out, and behind it those that it shares with.

        Those that nobody waits for any more are dropped.

        Args:
            share: the terms of a request; None for one that is computed alone.

        Returns:
            Those to compute now, none if none wait. They can no longer be cancelled.
        """
        group: list[Waiting[RequestT, RawT]] = []
        kept: deque[Waiting[RequestT, RawT]] = deque()
        terms: Share | None = None
        room = 0
        with self._lock:
            while self._waiting:
                waiting = self._waiting.popleft()
                if not group:
                    if waiting.done.set_running_or_notify_cancel():
                        group.append(waiting)
                        terms = share(waiting.request)
                        room = terms.limit - terms.size if terms else 0
                    continue
                if terms is None:
                    kept.append(waiting)
                    break
                other = share(waiting.request)
                if other is None or other.kind != terms.kind or other.size > room:
                    kept.append(waiting)
                elif waiting.done.set_running_or_notify_cancel():
                    group.append(waiting)
                    room -= other.size
            kept.extend(self._waiting)
            self._waiting = kept
        return group

    def close(self) -> None:
        """Cancels all that wait."""
        with self._lock:
            for waiting in self._waiting:
                waiting.done.cancel()
            self._waiting.clear()
