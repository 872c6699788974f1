"""POST /aiResults: where workers answer (go-livepeer, server/ai_http.go, AIResults)."""

import re
from hmac import compare_digest

from cluster.loopback.answers import AnswerFault, parse_answer
from cluster.loopback.asgi import Request, Response
from cluster.loopback.faults import FaultLog
from cluster.loopback.jobs import Job, JobFailed, Jobs, MediaAnswer, WorkerError

AUTHORIZATION = "Livepeer-AI-Worker-1.0"

MAX_RESULT_BYTES = 300_000_000
"""As much as the network lets a worker download."""

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
        """Handles one answer."""
        task_id: int | None = None
        try:
            self._authenticate(request)
            task_id = _task_id(request)
            self._take(request, task_id)
        except AnswerFault as fault:
            self._faults.add(str(fault), peer=request.peer, task_id=task_id)
            return Response(status=fault.status, body=f"{fault}\n".encode())
        return Response(status=200, body=b"OK")

    def _authenticate(self, request: Request) -> None:
        if request.header("authorization") != AUTHORIZATION:
            raise AnswerFault(f"Authorization is not {AUTHORIZATION}", status=401)
        if not compare_digest(request.headers.get(b"credentials", b""), self._secret):
            raise AnswerFault("invalid secret", status=401)

    def _take(self, request: Request, task_id: int) -> None:
        """Answers the job, or fails it and raises what was wrong."""
        job = self._jobs.find(task_id)
        if job is None:
            self._faults.add_late(peer=request.peer, task_id=task_id)
            return
        try:
            answer = _parse(request, job)
        except AnswerFault as fault:
            self._jobs.answer(job, JobFailed(f"the worker's answer is wrong: {fault}"))
            raise
        self._jobs.answer(job, answer)


def _parse(request: Request, job: Job) -> MediaAnswer | WorkerError:
    if request.body_error is not None:
        raise AnswerFault(str(request.body_error), status=request.body_error.status)
    answer = parse_answer(
        content_type=request.header("content-type"), pipeline=job.pipeline, body=request.body
    )
    # The header chooses how a result is read; of an error it is not looked at.
    pipeline = request.header("pipeline")
    if isinstance(answer, MediaAnswer) and pipeline != job.pipeline:
        raise AnswerFault(
            f"Pipeline header {pipeline!r} on a job of {job.pipeline}: the result would be null"
        )
    return answer


def _task_id(request: Request) -> int:
    text = request.header("taskid")
    if _INTEGER.fullmatch(text) is None:
        raise AnswerFault(f"TaskId {text!r} is not an integer")
    return int(text)
