"""POST /aiResults: where workers answer (go-livepeer, server/ai_http.go, AIResults)."""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from hmac import compare_digest

from cluster.loopback.answers import AnswerFault, check_stream, parse_answer
from cluster.loopback.asgi import BodyError, Head, Request, Response
from cluster.loopback.event_stream import MEDIA_TYPE as EVENT_STREAM
from cluster.loopback.event_stream import EventFault, EventStream
from cluster.loopback.faults import FaultLog
from cluster.loopback.jobs import Job, JobFailed, Jobs, MediaAnswer, StreamedAnswer, WorkerError

AUTHORIZATION = "Livepeer-AI-Worker-1.0"

MAX_RESULT_BYTES = 300_000_000
"""As much as the network lets a worker download."""

_STREAM_S = 600.0
"""go-livepeer's HTTPIdleTimeout: a stream that takes longer is cut."""

_INTEGER = re.compile(r"[+-]?[0-9]{1,19}", re.ASCII)


class AIResults:
    """Takes workers' answers and tells them at once what is wrong with them.

    Who cannot name the secret learns nothing and changes nothing: the job goes on waiting. Any
    other wrong answer to an open job fails that job, so that its caller does not wait.
    """

    def __init__(self, *, secret: str, jobs: Jobs, faults: FaultLog) -> None:
        """Takes the secret that workers have to name."""
        self._secret = secret.encode()
        self._jobs = jobs
        self._faults = faults

    async def __call__(self, request: Request) -> Response:
        """Handles one answer that has arrived as a whole."""
        task_id: int | None = None
        try:
            self._authenticate(request)
            task_id = _task_id(request)
            self._take(request, task_id)
        except AnswerFault as fault:
            return self._fault(fault, request, task_id)
        return Response(status=200, body=b"OK")

    async def take_stream(self, head: Head, chunks: AsyncGenerator[bytes]) -> Response:
        """Handles one answer that is an event stream, as it arrives."""
        task_id: int | None = None
        fault: AnswerFault | None = None
        try:
            async with asyncio.timeout(_STREAM_S), aclosing(chunks):
                try:
                    self._authenticate(head)
                    task_id = _task_id(head)
                    await self._relay(head, task_id, chunks)
                except AnswerFault as error:
                    fault = error
                await _drain(chunks)
        except TimeoutError:
            fault = fault or AnswerFault(f"the stream is not at its end after {_STREAM_S:g} s")
        except BodyError as error:
            fault = fault or AnswerFault(str(error), status=error.status)
        return self._fault(fault, head, task_id) if fault else Response(status=200, body=b"OK")

    async def _relay(self, head: Head, task_id: int, chunks: AsyncGenerator[bytes]) -> None:
        """Answers the job with a stream, or fails it; raises what was wrong."""
        job = self._find(head, task_id)
        if job is None:
            return
        try:
            check_stream(job)
        except AnswerFault as fault:
            self._jobs.answer(job, _wrong(fault))
            raise
        answer = StreamedAnswer()
        # From here on the worker can be given the next job, as at the real orchestrator.
        self._jobs.answer(job, answer)
        events = EventStream()
        try:
            async for chunk in chunks:
                for event in events.feed(chunk):
                    answer.add(event)
                    if events.finished:
                        answer.end()
            events.close()
        except EventFault as error:
            raise AnswerFault(str(error)) from None
        finally:
            answer.end()

    def _fault(self, fault: AnswerFault, head: Head, task_id: int | None) -> Response:
        self._faults.add(str(fault), peer=head.peer, task_id=task_id)
        return Response(status=fault.status, body=f"{fault}\n".encode())

    def _authenticate(self, head: Head) -> None:
        if head.header("authorization") != AUTHORIZATION:
            raise AnswerFault(f"Authorization is not {AUTHORIZATION}", status=401)
        if not compare_digest(head.header_bytes("credentials"), self._secret):
            raise AnswerFault("invalid secret", status=401)

    def _find(self, head: Head, task_id: int) -> Job | None:
        """Returns the job that waits for this answer, and notes where there is none."""
        job = self._jobs.find(task_id)
        if job is None:
            self._faults.add_late(peer=head.peer, task_id=task_id)
        return job

    def _take(self, request: Request, task_id: int) -> None:
        """Answers the job, or fails it and raises what was wrong."""
        job = self._find(request, task_id)
        if job is None:
            return
        try:
            answer = _parse(request, job)
        except AnswerFault as fault:
            self._jobs.answer(job, _wrong(fault))
            raise
        self._jobs.answer(job, answer)


def is_event_stream(head: Head) -> bool:
    """Tells whether an answer has to be taken as it arrives."""
    return head.header("content-type").partition(";")[0].strip().lower() == EVENT_STREAM


async def _drain(chunks: AsyncGenerator[bytes]) -> None:
    """Reads what nobody wants, so that its sender can be answered."""
    async for _ in chunks:
        pass


def _wrong(fault: AnswerFault) -> JobFailed:
    return JobFailed(f"the worker's answer is wrong: {fault}")


def _parse(request: Request, job: Job) -> MediaAnswer | WorkerError:
    if request.body_error is not None:
        raise AnswerFault(str(request.body_error), status=request.body_error.status)
    answer = parse_answer(content_type=request.header("content-type"), job=job, body=request.body)
    # The header chooses how a result is read; of an error it is not looked at.
    pipeline = request.header("pipeline")
    if isinstance(answer, MediaAnswer) and pipeline != job.pipeline:
        raise AnswerFault(
            f"Pipeline header {pipeline!r} on a job of {job.pipeline}: the result would be null"
        )
    return answer


def _task_id(head: Head) -> int:
    text = head.header("taskid")
    if _INTEGER.fullmatch(text) is None:
        raise AnswerFault(f"TaskId {text!r} is not an integer")
    return int(text)
