"""The bridge: every job that comes in is answered, with its result or with the reason why not.

Order of the end, and why:

1. The registrations are closed, so that no new job can come, and the door for live runners
   turns requests away. Jobs already here stay valid: the orchestrator matches answers by task
   id, not by stream, and a request has its own connection.
2. Running jobs get `grace_s` to finish, and their answers are delivered.
3. What still runs is cancelled, which reaches the replica, and answered with `insufficient
   capacity`: the gateway tries another orchestrator and does not suspend ours. So is what
   waits for the slots that this frees. A stream that has begun is ended where it is.
4. Only then the HTTP connections close: nothing is left to say.

A machine that is drained (cluster/drain.py) is a change of capacity and no end: what it had is
taken out of the registration first, and its jobs go on.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Protocol

from cluster.ai_models import ModelKey
from cluster.backends import Backend
from cluster.bridge.address import Address
from cluster.bridge.admission import WAIT_S
from cluster.bridge.backlog import Backlog
from cluster.bridge.deadlines import Deadlines
from cluster.bridge.event_stream import Stream
from cluster.bridge.execution import Done, Execution
from cluster.bridge.inputs import Inputs
from cluster.bridge.job import Job, Visit, Work, read_work
from cluster.bridge.journal import Journal
from cluster.bridge.record import JobRecord, log_record
from cluster.bridge.results import Answer, Delivery, failure, success
from cluster.capacity import Capacity
from cluster.errors import JobError, JobFailed, RegistrationError
from deployments.schemas.base import Request

logger = logging.getLogger(__name__)

LAST_ANSWERS_S = 15.0
"""For delivering the answers of step 3 of the end."""


class Registration(Protocol):
    """How work reaches the bridge. Nothing outside knows which kind it is."""

    def announce(self, capacity: Capacity) -> None:
        """Makes this the capacity that is known out there."""

    async def run(self) -> None:
        """Takes work until cancelled; has left by the time it returns."""


class Bridge:
    """Joins registration, admission, backends and delivery."""

    def __init__(
        self,
        *,
        backends: Mapping[ModelKey, Backend],
        inputs: Inputs,
        delivery: Delivery,
        deadlines: Deadlines,
        grace_s: float,
        journal: Journal | None = None,
        queue_s: float = WAIT_S,
        on_finished: Callable[[JobRecord], None] = log_record,
    ) -> None:
        """Takes the parts; `run` starts them.

        Args:
            backends: who runs the jobs of each model.
            inputs: an open one, for the files that jobs work on.
            delivery: an open one, for the answers.
            deadlines: for jobs, from their arrival to their results.
            grace_s: for running jobs at the end.
            journal: of jobs that are not answered yet, for the case that this process dies.
            queue_s: for a job to wait for a slot.
            on_finished: called once a job, when all is said.
        """
        self._execution = Execution(backends=backends, deadlines=deadlines, queue_s=queue_s)
        self._inputs = inputs
        self._delivery = delivery
        self._grace_s = grace_s
        self._on_finished = on_finished
        self._journal = journal
        self._jobs: set[asyncio.Task[Any]] = set()
        self._taken: set[tuple[str, int]] = set()
        self._backlogs: defaultdict[Address, Backlog] = defaultdict(Backlog)

    def serve(self, backends: Mapping[ModelKey, Backend]) -> None:
        """Takes other models. Jobs that run go on."""
        self._execution.backends = backends

    @property
    def models(self) -> Sequence[ModelKey]:
        """Those that are served, with a slot or without."""
        return tuple(self._execution.backends)

    @property
    def in_flight(self) -> Mapping[ModelKey, int]:
        """Jobs that hold a slot, by model."""
        return self._execution.admission.in_flight

    async def accept(self, job: Job) -> None:
        """Takes a job off the registration; returns when the next one may come.

        One that comes again while it is being worked on is answered once. Over plaintext it may
        be another orchestrator process that counts anew.
        """
        key = (job.peer.fingerprint, job.task_id)
        if job.peer.fingerprint and key in self._taken:
            logger.warning("%s came again, and is answered once", job)
            return
        self._taken.add(key)
        if self._journal:
            self._journal.taken(job)
        backlog = self._backlogs[job.peer.address]
        backlog.grow()
        task = asyncio.create_task(self._handle(job), name=str(job))
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)
        task.add_done_callback(lambda _: self._taken.discard(key))
        task.add_done_callback(backlog.shrink)
        # From here on only the task has the job, which may have many megabytes.
        del job
        await backlog.room.wait()

    def slots(self, key: ModelKey) -> int:
        """How many jobs a model takes at once."""
        return self._execution.admission.slots(key)

    async def run(
        self,
        *,
        registrations: Sequence[Registration],
        doors: Sequence[Registration] = (),
        snapshots: AsyncIterator[Capacity],
        stop: asyncio.Event,
    ) -> None:
        """Works until `stop` is set, then ends in the order that the module's docstring gives.

        Args:
            registrations: all are told the whole capacity. One that fails leaves the others be.
            doors: as registrations, but they register with nobody: without one of those, if any
                was wanted, they are open in vain.
            snapshots: the capacity, whenever it changes.
            stop: to be set from outside.

        Raises:
            RegistrationError: no registration is left, and this is why; running jobs are
                finished and answered first.
        """
        working: set[asyncio.Task[Any]] = {
            asyncio.create_task(registration.run(), name="registration")
            for registration in registrations
        }
        everybody = (*doors, *registrations)
        others: set[asyncio.Task[Any]] = {
            asyncio.create_task(self._follow(snapshots, everybody), name="capacity"),
            asyncio.create_task(stop.wait(), name="stop"),
            *(asyncio.create_task(door.run(), name="door") for door in doors),
        }
        failure: BaseException | None = None
        try:
            while not failure and not any(task.done() for task in others):
                ended, _ = await asyncio.wait(working | others, return_when=asyncio.FIRST_COMPLETED)
                for task in working & ended:
                    working.discard(task)
                    if working and isinstance(task.exception(), RegistrationError):
                        logger.error("%s; going on with the others", task.exception())
                    else:
                        failure = task.exception()
        finally:
            tasks = working | others
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            await self._drain()
        for problem in (failure, *results):
            if isinstance(problem, Exception):
                raise problem

    async def _follow(
        self, snapshots: AsyncIterator[Capacity], registrations: Sequence[Registration]
    ) -> None:
        async for capacity in snapshots:
            logger.info("capacity: %s", capacity)
            self._execution.admission.update(capacity)
            for registration in registrations:
                registration.announce(capacity)

    async def _drain(self) -> None:
        if self._jobs:
            logger.info("finishing %d jobs", len(self._jobs))
            await asyncio.wait(self._jobs, timeout=self._grace_s)
        self._execution.stop()
        if self._jobs:
            _, unanswered = await asyncio.wait(self._jobs, timeout=LAST_ANSWERS_S)
            for handling in unanswered:
                logger.error("%s: not answered before the end", handling.get_name())
                handling.cancel()
            await asyncio.gather(*unanswered, return_exceptions=True)

    async def _handle(self, job: Job) -> None:
        record = JobRecord(task_id=job.task_id, pipeline=job.pipeline)
        answer: Answer | None
        try:
            answer = await self._answer(job, record)
        except JobError as error:
            record.failed(error)
            answer = failure(error, job.pipeline)
        except Exception as error:  # noqa: BLE001 - an unanswered job would cost the whole worker
            unexpected = _unexpected(error, job)
            record.failed(unexpected)
            answer = failure(unexpected, job.pipeline)
        # What it asked for may have many megabytes, and thousands may wait for their refusal.
        job = replace(job, data=b"")
        if answer is not None:
            record.delivered = await self._delivery.deliver(job, answer)
        if self._journal:
            self._journal.answered(job)
        record.total_s = asyncio.get_running_loop().time() - job.received_at
        self._on_finished(record)

    async def _answer(self, job: Job, record: JobRecord) -> Answer | None:
        """Returns the answer; None for a stream, which was sent while it held its slot."""
        work = read_work(job, self._execution.backends)
        record.model_id = work.key.model_id

        async def request() -> Request:
            return work.request(await self._inputs.fetch(job, work) if work.input_url else None)

        async with self._execution.doing(
            job, work, record, request=request, source=job.peer.address
        ) as done:
            if isinstance(done, Stream):
                await self._relay(done, job, record)
                return None
        return success(done.result)

    async def _relay(self, stream: Stream, job: Job, record: JobRecord) -> None:
        """Sends a stream to its end. Never raises a `JobError`."""
        try:
            # The extra time is for an orchestrator that stops reading.
            async with asyncio.timeout_at(self._execution.deadline(job) + LAST_ANSWERS_S):
                record.delivered = await self._delivery.deliver(job, stream)
        except TimeoutError:
            logger.warning("%s: the orchestrator stopped reading the stream", job)

    @asynccontextmanager
    async def serving(
        self, visit: Visit, work: Work, request: Request, *, source: Hashable
    ) -> AsyncIterator[Done]:
        """Does what came over HTTP: with the slots, deadlines and retries of all jobs.

        Holds the slot until the context ends, a stream's until it is read.

        Args:
            visit: who waits.
            work: what is asked for; of a model that is served.
            request: the same, validated.
            source: with whom free slots are shared fairly.

        Raises:
            JobError: it was not done.
        """
        record = JobRecord(
            task_id=visit.number,
            pipeline=visit.pipeline,
            model_id=work.key.model_id,
            over_http=True,
        )

        async def validated() -> Request:
            return request

        waiting = asyncio.current_task()
        assert waiting is not None  # noqa: S101 - coroutines run in tasks
        self._jobs.add(waiting)
        try:
            async with self._execution.doing(
                visit, work, record, request=validated, source=source
            ) as done:
                yield done
            record.delivered = True
        except JobError as error:
            record.failed(error)
            record.delivered = True
            raise
        except Exception as error:
            unexpected = _unexpected(error, visit)
            record.failed(unexpected)
            record.delivered = True
            raise unexpected from error
        except BaseException:
            record.outcome, record.kind = "the client has left", "left"
            raise
        finally:
            self._jobs.discard(waiting)
            record.total_s = asyncio.get_running_loop().time() - visit.received_at
            self._on_finished(record)


def _unexpected(error: Exception, asked: Job | Visit) -> JobFailed:
    """A bug of ours, in the words that others may see."""
    logger.error("%s", asked, exc_info=error)
    return JobFailed(f"{type(error).__name__} in the bridge")
