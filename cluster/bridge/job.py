"""A job as the bridge sees it, and how one is read off the wire.

The message's shape: go-livepeer, server/ai_worker.go `AIJobRequestData`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.ai_models import ModelKey
from cluster.bridge.peer import Peer
from cluster.errors import BadRequest, InsufficientCapacity, JobRejected
from cluster.protocol.lp_rpc_pb2 import NotifyAIJob
from deployments.registry import PIPELINES, Pipeline
from deployments.schemas.base import Request

MAX_JOB_BYTES = 16 * 1024 * 1024
"""Of a job's JSON, without its file: four times the longest mask, or a text that fills a context of
a million tokens. gRPC lets four times as much through, which only costs memory to read."""


MAX_NAME_CHARS = 100
"""Of a pipeline; servers refuse headers of some kilobytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job, not yet read: `data` is whatever the orchestrator sent."""

    task_id: int
    pipeline: str
    data: bytes
    peer: Peer
    """Who gets the answer. Task ids mean something to this orchestrator process only."""
    received_at: float
    """By the event loop's clock, in seconds."""

    @classmethod
    def from_message(cls, message: NotifyAIJob, *, peer: Peer, received_at: float) -> "Job":
        """Takes a job off the stream; its data is not looked at yet."""
        pipeline = message.AIJobData.pipeline
        sane = len(pipeline) <= MAX_NAME_CHARS and pipeline.isascii() and pipeline.isprintable()
        return cls(
            task_id=message.taskId,
            # It becomes a header and stands in log lines, which junk must never get into. A
            # job with such a name is answered with an error, for which the header is not read.
            pipeline=pipeline if sane else "unknown",
            data=message.AIJobData.requestData,
            peer=peer,
            received_at=received_at,
        )

    def __str__(self) -> str:
        return f"job {self.task_id} ({self.pipeline})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One request that somebody waits for on a connection of his own, over HTTP."""

    number: int
    pipeline: str
    received_at: float
    """By the event loop's clock, in seconds."""

    def __str__(self) -> str:
        return f"request {self.number} ({self.pipeline})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a job asks for: which of our models, and with what parameters."""

    key: ModelKey
    pipeline: Pipeline
    parameters: Mapping[str, Any]
    """Not validated yet."""
    input_url: str = ""
    """Where the file is that the pipeline works on; empty for those without one."""

    def request(self, file: bytes | None = None) -> Request:
        """Validates the parameters.

        Args:
            file: what was at `input_url`.

        Raises:
            JobRejected: with every parameter that is wrong, and why.
        """
        parameters = dict(self.parameters)
        if self.pipeline.file:
            parameters[self.pipeline.file] = file
        try:
            return self.pipeline.request.parse(parameters)
        except BadRequest as error:
            raise JobRejected(str(error)) from None


def read_work(job: Job, served: Mapping[ModelKey, object]) -> Work:
    """Reads what a job asks for.

    Args:
        job: as it came.
        served: the configured models, by key.

    Raises:
        JobRejected: malformed; the text says how.
        InsufficientCapacity: a pipeline or model that is not ours; somebody else may have it.
    """
    pipeline = PIPELINES.get(job.pipeline)
    if pipeline is None:
        raise InsufficientCapacity(f"this worker does not serve the pipeline {job.pipeline!r}")
    envelope = _envelope(job.data)
    parameters, input_url = envelope["request"], envelope.get("input_url") or ""
    if pipeline.file and not (isinstance(input_url, str) and input_url):
        raise JobRejected(f"input_url: must be given, the {pipeline.file} is there")
    key = _model(pipeline, parameters, served)
    return Work(
        key=key,
        pipeline=pipeline,
        parameters=parameters,
        input_url=input_url if pipeline.file else "",
    )


def _envelope(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_JOB_BYTES:
        raise JobRejected(f"the job has {len(data)} bytes, more than the {MAX_JOB_BYTES} it may")
    try:
        envelope = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise JobRejected(f"the job is not JSON: {error}") from None
    if not isinstance(envelope, dict) or not isinstance(envelope.get("request"), dict):
        raise JobRejected("the job is not an object with a `request` object in it")
    return envelope


def _model(
    pipeline: Pipeline, parameters: Mapping[str, Any], served: Mapping[ModelKey, object]
) -> ModelKey:
    """The model that the job names; without a name, the only one that the pipeline has."""
    field = pipeline.model_field
    model_id = parameters.get(field)
    if model_id is not None and not isinstance(model_id, str):
        raise JobRejected(f"{field}: must be a string")
    ours = [key for key in served if key.pipeline == pipeline.name]
    if not model_id:
        if len(ours) == 1:
            return ours[0]
        if not ours:
            raise InsufficientCapacity(f"this worker has no model for {pipeline.name}")
        raise JobRejected(f"{field}: must be given; this worker serves {len(ours)} models")
    key = ModelKey(pipeline.name, model_id)
    if key not in served:
        raise InsufficientCapacity(f"this worker does not serve {key}")
    return key
