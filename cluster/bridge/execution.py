"""Doing what was asked: in a slot, within a deadline, and again where a replica was lost.

The same for jobs and for what comes over HTTP, so that both share the slots. Who asks, and how the
answer gets there, is the bridge's business (`cluster.bridge.bridge`).
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from cluster.ai_models import ModelKey
from cluster.backends import Backend
from cluster.bridge.admission import Admission
from cluster.bridge.deadlines import Deadlines
from cluster.bridge.event_stream import Stream
from cluster.bridge.job import Job, Visit, Work
from cluster.bridge.record import JobRecord
from cluster.bridge.retry import Retries
from cluster.errors import DeadlinePassed, InsufficientCapacity
from deployments.schemas.base import Completed, Request, Result

Done = Completed[Result] | Stream
"""A result, or a stream that has its first chunk."""


class Execution:
    """Runs work on the backends of the models."""

    def __init__(
        self, *, backends: Mapping[ModelKey, Backend], deadlines: Deadlines, queue_s: float
    ) -> None:
        """Starts without capacity; see `Admission.update`.

        Args:
            backends: who does the work of each model.
            deadlines: from the arrival to the result.
            queue_s: for a slot.
        """
        self.backends = backends
        """May be replaced; what runs goes on where it is."""
        self.admission = Admission(wait_s=queue_s)
        self._deadlines = deadlines
        self._retries = Retries()
        self._running: set[asyncio.Task[Done]] = set()
        self._streams: set[Stream] = set()
        self._stopped = False

    def deadline(self, asked: Job | Visit) -> float:
        """By the event loop's clock."""
        return asked.received_at + self._deadlines.of(asked.pipeline)

    @asynccontextmanager
    async def doing(
        self,
        asked: Job | Visit,
        work: Work,
        record: JobRecord,
        *,
        request: Callable[[], Awaitable[Request]],
        source: Hashable,
    ) -> AsyncIterator[Done]:
        """Does it, and holds its slot until the context ends. A stream ends with the context.

        Args:
            asked: the job or visit.
            work: what it asks for.
            record: is told who did it, and how long that took.
            request: makes the request; called when there is a slot, and again never.
            source: with whom free slots are shared fairly.

        Raises:
            JobError: it was not done.
        """
        clock = asyncio.get_running_loop().time
        began = clock()
        async with self.admission.slot(work.key, source=source):
            record.waited_s = clock() - began
            if self._stopped:
                # The slot of one that was called off.
                raise InsufficientCapacity("this worker is shutting down")
            done = await self._in_time(
                self._attempts(asked, work, record, request), asked, key=work.key
            )
            if not isinstance(done, Stream):
                record.replica, record.compute_s = done.replica, done.compute_s
                yield done
                return
            done.cut(at=self.deadline(asked))
            self._streams.add(done)
            try:
                yield done
            finally:
                self._streams.discard(done)
                await done.aclose()
                record.replica, record.compute_s = done.last.replica, done.last.compute_s
                if done.failed:
                    record.outcome, record.kind = "the stream was cut short", "cut_short"

    def stop(self) -> None:
        """Calls off what has no result yet, ends streams where they are, and begins nothing new."""
        self._stopped = True
        for running in self._running:
            running.cancel()
        for stream in self._streams:
            stream.cut(at=asyncio.get_running_loop().time())

    async def _attempts(
        self,
        asked: Job | Visit,
        work: Work,
        record: JobRecord,
        make_request: Callable[[], Awaitable[Request]],
    ) -> Done:
        request = await make_request()
        backend = self.backends.get(work.key)
        if backend is None:
            # The aiModels.json changed while it waited for a slot, or for its file.
            raise InsufficientCapacity(f"this worker does not serve {work.key} any more")

        async def attempt() -> Done:
            record.attempts += 1
            left_s = self.deadline(asked) - asyncio.get_running_loop().time()
            if request.wants_stream:
                chunks = backend.stream(work.key, request, timeout_s=left_s)
                return await Stream.begin(chunks, name=str(asked))
            return await backend.run(work.key, request, timeout_s=left_s)

        return await self._retries.run(attempt, work=work, request=request, name=str(asked))

    async def _in_time(
        self, work: Coroutine[Any, Any, Done], asked: Job | Visit, *, key: ModelKey
    ) -> Done:
        """Does the work within its deadline; cancels it, and waits for its end, if not.

        Also if the cancellation comes from outside: the slot is held until the work has ended. A
        second one waits no longer.
        """
        running = asyncio.create_task(work)
        self._running.add(running)
        try:
            left_s = self.deadline(asked) - asyncio.get_running_loop().time()
            await asyncio.wait({running}, timeout=left_s)
        finally:
            self._running.discard(running)
            in_time = running.done()
            running.cancel()
            # Not `gather`, which would hold a second cancellation back until the work ends.
            await asyncio.wait({running})
            if not running.cancelled():
                # So that asyncio does not complain of what nobody asks for.
                running.exception()
        if not in_time:
            if not self.admission.slots(key):
                # It waited for a replica, and the model is not to blame.
                raise InsufficientCapacity(f"there is no replica of {key} any more")
            raise DeadlinePassed(f"no result within {self._deadlines.of(asked.pipeline):g} s")
        if running.cancelled():
            raise InsufficientCapacity("this worker is shutting down")
        try:
            return running.result()
        finally:
            # What it raised refers to this frame. Without the way back, the request with its file
            # goes when it is answered, and not when the garbage collector comes.
            del running
