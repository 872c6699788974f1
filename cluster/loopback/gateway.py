"""The callers' side: `POST /<pipeline>` as a gateway has it, and the files of jobs and answers.

What a gateway makes of a worker's error text is go-livepeer's server/ai_process.go. Two things
differ: a real gateway suspends an orchestrator whose worker fails; here that is only counted,
and the worker is selected again, so that development goes on. And callers of llm are told of
their mistakes with 400 too, where a real gateway says 500.
"""

import json
from contextlib import ExitStack
from typing import Any

from cluster.loopback.asgi import Headers, Request, Response, StreamedResponse
from cluster.loopback.event_stream import MEDIA_TYPE as EVENT_STREAM
from cluster.loopback.go_json import marshal
from cluster.loopback.jobs import (
    Job,
    JobFailed,
    Jobs,
    MediaAnswer,
    NotSent,
    StreamedAnswer,
    WorkerError,
)
from cluster.loopback.parameters import BadParameters, decode
from cluster.loopback.pipelines import Pipeline
from cluster.loopback.store import Store
from cluster.loopback.workers import Worker, Workers

MAX_REQUEST_BYTES = 1_000_000

MAX_UPLOAD_BYTES = 300_000_000
"""A form with its file; workers are not let download more (protocol.md, section 4)."""

_NO_CAPACITY = "insufficient capacity"
_BAD_REQUEST = "returned 400"


class Gateway:
    """Turns callers' requests into jobs and their answers into downloads."""

    def __init__(self, *, workers: Workers, jobs: Jobs, url: str) -> None:
        """Takes the url that workers' downloads start with, and callers' who name no host."""
        self._workers = workers
        self._jobs = jobs
        self._url = url
        self._store = Store()

    async def generate(self, pipeline: Pipeline, request: Request) -> Response | StreamedResponse:
        """Handles one request for a pipeline."""
        try:
            given = decode(pipeline, content_type=request.header("content-type"), body=request.body)
            model_id = self._model(pipeline, given.parameters)
        except BadParameters as error:
            return _failure(400, str(error))
        # The file is a copy, and jobs may take long.
        request.body.clear()
        streamed = pipeline.streams and given.parameters["stream"]
        with ExitStack() as stack:
            path = "" if given.file is None else stack.enter_context(self._store.lend(given.file))
            request_data = marshal(
                {
                    "input_url": f"{self._url}/stream/{path}" if path else "",
                    "request": given.parameters,
                }
            )
            return await self._run(
                pipeline, model_id, request_data, streamed=streamed, request=request
            )

    async def download(self, request: Request) -> Response:
        """Handles `GET /stream/<request>/<name>`."""
        file = self._store.get(request.path.removeprefix("/stream/"))
        if file is None:
            return Response(status=404, body=b"no such file, or not any more\n")
        return Response(status=200, body=file.data, media_type=file.media_type)

    async def _run(
        self,
        pipeline: Pipeline,
        model_id: str,
        request_data: bytes,
        *,
        streamed: bool,
        request: Request,
    ) -> Response | StreamedResponse:
        """Has the first worker with room do a job, or the next that has any."""
        refused: list[Worker] = []
        reason, job = _NO_CAPACITY, None
        while selected := self._workers.select(
            pipeline=pipeline.name, model_id=model_id, exclude=refused
        ):
            worker, slots = selected
            job = self._jobs.hand_out(
                worker=worker,
                slots=slots,
                pipeline=pipeline.name,
                request_data=request_data,
                streamed=streamed,
            )
            try:
                answer = await self._jobs.wait(job)
            except NotSent:
                refused.append(worker)
                continue
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
            if isinstance(answer, StreamedAnswer):
                return _stream(answer, job)
            return self._success(answer, request, job)
        return _failure(503, reason, job)

    def _model(self, pipeline: Pipeline, parameters: dict[str, Any]) -> str:
        """Returns the model id, filled in where there is no choice."""
        models = self._workers.models(pipeline.name)
        name = pipeline.model_field
        if name not in parameters and len(models) > 1:
            raise BadParameters(f"{name}: name one of {', '.join(models)}")
        # Without any worker the default matters to nobody: there is no capacity.
        return str(parameters.setdefault(name, models[0] if models else ""))

    def _success(self, answer: MediaAnswer, request: Request, job: Job) -> Response:
        """Keeps the files and returns the document with urls to download them from."""
        if answer.files:
            stored = self._store.keep(answer.files, answer.media_type)
            host = request.header("host")
            base = f"https://{host}" if host else self._url
            for entry in answer.entries:
                entry["url"] = f"{base}/stream/{stored}/{entry['url']}"
        return _json(200, answer.document, job)


def _failure(status: int, reason: str, job: Job | None = None) -> Response:
    """Returns an error in the gateway's form; a real one hides the text of 500 and 503."""
    return _json(status, {"error": {"message": reason}}, job)


def _json(status: int, document: Any, job: Job | None) -> Response:
    return Response(
        status=status,
        body=json.dumps(document).encode() + b"\n",
        media_type="application/json",
        headers=_headers(job),
    )


def _stream(answer: StreamedAnswer, job: Job) -> StreamedResponse:
    """Relays events; as at a real gateway the finishing chunk is the last, no `[DONE]` follows."""
    return StreamedResponse(
        body=aiter(answer),
        media_type=EVENT_STREAM,
        headers=[(b"cache-control", b"no-cache"), *_headers(job)],
    )


def _headers(job: Job | None) -> Headers:
    return [] if job is None else [(b"livepeer-task-id", str(job.task_id).encode())]
