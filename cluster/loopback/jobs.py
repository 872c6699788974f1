"""Jobs that were handed out and are not answered yet.

As at the real orchestrator, a job is known by its id alone, ids count from 0, an answer is
taken whether or not the worker's stream is still there, and a job that stays unanswered for
too long costs the worker its stream, with all its capacity.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from cluster.loopback.faults import FaultLog
from cluster.loopback.workers import Outgoing, Slots, Worker, Workers
from cluster.protocol import lp_rpc_pb2 as pb

STOPPING = "the orchestrator is stopping"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaAnswer:
    """A worker's answer: a document and the files that it names."""

    document: dict[str, Any]
    entries: list[dict[str, Any]]
    """Those parts of `document` whose `url` is a name in `files`."""
    files: Mapping[str, bytes]
    media_type: str
    """Of the files; empty where there are none."""


class StreamedAnswer:
    """A worker's answer that is still arriving, event by event.

    However slowly a caller reads it, or if it has left: the worker never waits for it.
    """

    def __init__(self) -> None:
        """Starts without any event."""
        self._events: asyncio.Queue[bytes | None] = asyncio.Queue()

    def add(self, event: bytes) -> None:
        """Adds an event."""
        self._events.put_nowait(event)

    def end(self) -> None:
        """Ends the stream, the first time; where it breaks off, its reader is not told why."""
        self._events.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yields the events as they arrive; once."""
        while (event := await self._events.get()) is not None:
            yield event


class JobFailed(Exception):
    """A job that ended without a result, for a reason that is not in the worker's words."""

    status = 500


class JobAbandoned(JobFailed):
    """The orchestrator stops."""

    status = 503

    def __init__(self) -> None:
        """Takes nothing: there is one reason."""
        super().__init__(STOPPING)


class NotSent(JobFailed):
    """The worker's stream ended before the job was written: somebody else should have it."""

    status = 503

    def __init__(self) -> None:
        """Takes nothing: there is one reason."""
        super().__init__("the worker has left")


class WorkerError(JobFailed):
    """The worker answered with an error; the message is its text, which gateways interpret."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """One job that a worker has."""

    task_id: int
    pipeline: str
    worker: Worker
    slots: Slots | None
    streamed: bool
    """Whether an event stream is awaited, and nothing else."""
    answer: asyncio.Future[MediaAnswer | StreamedAnswer] = field(default_factory=asyncio.Future)


class Jobs:
    """Hands jobs out and waits for their answers."""

    def __init__(self, *, workers: Workers, faults: FaultLog, timeout_s: float) -> None:
        """Takes the time after which an unanswered job costs the worker its stream."""
        self._workers = workers
        self._faults = faults
        self._timeout_s = timeout_s
        self._open: dict[int, Job] = {}
        self._handed_out = 0
        self._answered = 0

    def hand_out(
        self,
        *,
        worker: Worker,
        slots: Slots | None,
        pipeline: str,
        request_data: bytes,
        streamed: bool = False,
    ) -> Job:
        """Sends a job to a worker; `slots` is where one was taken for it."""
        job = Job(
            task_id=self._handed_out,
            pipeline=pipeline,
            worker=worker,
            slots=slots,
            streamed=streamed,
        )
        self._handed_out += 1
        self._open[job.task_id] = job
        message = pb.NotifyAIJob(
            taskId=job.task_id,
            AIJobData=pb.AIJobData(pipeline=pipeline, requestData=request_data),
        )
        _log.info("job %s: %s, handed to %s", job.task_id, pipeline, worker.peer)
        worker.send(Outgoing(message=message, not_sent=partial(self._not_sent, job)))
        return job

    async def wait(self, job: Job) -> MediaAnswer | StreamedAnswer:
        """Returns the answer of a job; a streamed one as soon as it begins.

        Raises:
            WorkerError: the worker answered with an error.
            NotSent: the worker had left before it got the job.
            JobFailed: it answered wrongly or not at all.
            JobAbandoned: the orchestrator stops.
        """
        try:
            # Not wait_for, which cancels the future: an answer may arrive at that very moment.
            await asyncio.wait([job.answer], timeout=self._timeout_s)
            if job.answer.done():
                return job.answer.result()
            reason = f"not answered within {self._timeout_s:g} s: the worker is dropped"
            self._faults.add(reason, peer=job.worker.peer, task_id=job.task_id)
            self._workers.disconnect(job.worker)
            job.worker.end_stream()
            raise JobFailed(reason)
        finally:
            self._close(job)

    def find(self, task_id: int) -> Job | None:
        """Returns a job that still waits for its answer."""
        return self._open.get(task_id)

    def answer(self, job: Job, answer: MediaAnswer | StreamedAnswer | JobFailed) -> None:
        """Answers a job, which is not found any more from now on; its slot is free again."""
        self._answered += 1
        self._close(job)
        if isinstance(answer, JobFailed):
            _log.info("job %s failed: %s", job.task_id, answer)
            job.answer.set_exception(answer)
            return
        if isinstance(answer, StreamedAnswer):
            _log.info("job %s is being answered with an event stream", job.task_id)
        else:
            _log.info("job %s answered with %d file(s)", job.task_id, len(answer.files))
        job.answer.set_result(answer)

    def abandon(self) -> None:
        """Fails whatever is open, because the orchestrator stops."""
        for job in list(self._open.values()):
            self._close(job)
            job.answer.set_exception(JobAbandoned())

    def describe(self) -> dict[str, int]:
        """Returns what /status tells of jobs."""
        return {
            "handed_out": self._handed_out,
            "answered": self._answered,
            "open": len(self._open),
        }

    def _not_sent(self, job: Job) -> None:
        if job.task_id not in self._open:
            return
        _log.info("job %s: its worker has left", job.task_id)
        self._workers.disconnect(job.worker)
        self._close(job)
        job.answer.set_exception(NotSent())

    def _close(self, job: Job) -> None:
        """Forgets a job and gives its slot back, once."""
        if self._open.pop(job.task_id, None) is not None and job.slots is not None:
            job.slots.in_use -= 1
