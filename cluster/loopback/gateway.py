"""The callers' side: `POST /<pipeline>` as a gateway has it, and the files of the answers.

What a gateway makes of a worker's error text is go-livepeer's server/ai_process.go. One thing
differs: a real gateway suspends an orchestrator whose worker fails; here that is only counted,
and the worker is selected again, so that development goes on.
"""

import json
import secrets
from collections import OrderedDict
from typing import Any

from cluster.loopback.asgi import Request, Response
from cluster.loopback.go_json import marshal
from cluster.loopback.jobs import Job, JobFailed, Jobs, MediaAnswer, WorkerError
from cluster.loopback.pipelines import BadParameters, Pipeline, decode_parameters
from cluster.loopback.workers import Worker, Workers

MAX_REQUEST_BYTES = 1_000_000

_MAX_STORED_BYTES = 512_000_000
"""Beyond this the files of the oldest requests are forgotten; the real store keeps 10 minutes."""

_NO_CAPACITY = "insufficient capacity"
_BAD_REQUEST = "returned 400"


class Gateway:
    """Turns callers' requests into jobs and their answers into downloads."""

    def __init__(self, *, workers: Workers, jobs: Jobs, url: str) -> None:
        """Takes the url that downloads start with where a caller names no host."""
        self._workers = workers
        self._jobs = jobs
        self._url = url
        self._stored: OrderedDict[str, MediaAnswer] = OrderedDict()
        self._stored_bytes = 0

    async def generate(self, pipeline: Pipeline, request: Request) -> Response:
        """Handles one request for a pipeline."""
        try:
            parameters = decode_parameters(pipeline, request.body)
            model_id = self._model(pipeline, parameters)
        except BadParameters as error:
            return _failure(400, str(error))
        request_data = marshal({"input_url": "", "request": parameters})
        refused: list[Worker] = []
        reason, job = _NO_CAPACITY, None
        while selected := self._workers.select(
            pipeline=pipeline.name, model_id=model_id, exclude=refused
        ):
            worker, slots = selected
            job = self._jobs.hand_out(
                worker=worker, slots=slots, pipeline=pipeline.name, request_data=request_data
            )
            try:
                answer = await self._jobs.wait(job)
            except WorkerError as error:
                reason = str(error)
                if _NO_CAPACITY in reason.lower():
                    refused.append(worker)
                    continue
                worker.suspensions += 1
                if _BAD_REQUEST in reason:
                    why = reason.split(_BAD_REQUEST, 1)[1].strip() or "bad request"
                    return _failure(400, why, job)
                return _failure(500, reason, job)
            except JobFailed as error:
                return _failure(error.status, str(error), job)
            return self._success(answer, request, job)
        return _failure(503, reason, job)

    async def download(self, request: Request) -> Response:
        """Handles `GET /stream/<request>/<name>`."""
        request_id, _, name = request.path.removeprefix("/stream/").partition("/")
        answer = self._stored.get(request_id)
        if answer is None or name not in answer.files:
            return Response(status=404, body=b"no such file, or not any more\n")
        return Response(status=200, body=answer.files[name], media_type=answer.media_type)

    def _model(self, pipeline: Pipeline, parameters: dict[str, Any]) -> str:
        """Returns the model id, filled in where there is no choice."""
        models = self._workers.models(pipeline.name)
        if "model_id" not in parameters and len(models) > 1:
            raise BadParameters(f"model_id: name one of {', '.join(models)}")
        # Without any worker the default matters to nobody: there is no capacity.
        return str(parameters.setdefault("model_id", models[0] if models else ""))

    def _success(self, answer: MediaAnswer, request: Request, job: Job) -> Response:
        """Keeps the files and returns the document with urls to download them from."""
        request_id = secrets.token_hex(4)
        self._store(request_id, answer)
        host = request.header("host")
        base = f"https://{host}" if host else self._url
        for entry in answer.entries:
            entry["url"] = f"{base}/stream/{request_id}/{entry['url']}"
        return _json(200, answer.document, job)

    def _store(self, request_id: str, answer: MediaAnswer) -> None:
        self._stored[request_id] = answer
        self._stored_bytes += _size(answer)
        while self._stored_bytes > _MAX_STORED_BYTES and len(self._stored) > 1:
            _, oldest = self._stored.popitem(last=False)
            self._stored_bytes -= _size(oldest)


def _size(answer: MediaAnswer) -> int:
    return sum(map(len, answer.files.values()))


def _failure(status: int, reason: str, job: Job | None = None) -> Response:
    """Returns an error in the gateway's form; a real one hides the text of 500 and 503."""
    return _json(status, {"error": {"message": reason}}, job)


def _json(status: int, document: Any, job: Job | None) -> Response:
    return Response(
        status=status,
        body=json.dumps(document).encode() + b"\n",
        media_type="application/json",
        headers={} if job is None else {"Livepeer-Task-Id": str(job.task_id)},
    )
