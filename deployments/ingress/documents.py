"""What the OpenAPI document says beyond what FastAPI finds out by itself.

Paths, operation ids, tags and the names of schemas are ai-runner's (runner/openapi.yaml, 0.14.1),
so that a client that was generated from either document works with both.
"""

from typing import Any, Literal

from pydantic import BaseModel, Field

from deployments.hardware import GPU
from deployments.registry import Pipeline
from deployments.schemas.base import Request

TITLE = "livepeer-ray"

DESCRIPTION = """The models of a cluster, as ai-runner serves one.

Each is also there below a base url of its own, `/<pipeline>/<model_id>/`: the same paths, where
`/health`, `/version` and `/hardware` speak of that model alone."""

ALSO_NAMED = {"llm": "LLM"}
"""Pipelines whose name is written otherwise."""


class APIError(BaseModel):
    """What went wrong."""

    msg: str = Field(description="In words.")


class HTTPError(BaseModel):
    """An error."""

    detail: APIError = Field(description="What went wrong.")


class ValidationError(BaseModel):
    """A parameter that cannot be read."""

    loc: list[int | str] = Field(description="Where it is.")
    msg: str = Field(description="What is wrong with it.")
    type: str = Field(description="The same in one word.")


class HTTPValidationError(BaseModel):
    """Parameters that cannot be read."""

    detail: list[ValidationError] = Field(default=[], description="All of them.")


class HealthCheck(BaseModel):
    """Whether requests are served."""

    status: Literal["LOADING", "OK", "ERROR", "IDLE"] = Field(
        description="`IDLE`: the first request starts it."
    )


class Version(BaseModel):
    """Which API this is."""

    pipeline: str
    model_id: str
    version: str = Field(description="The ai-runner whose API this is.")


class GPUComputeInfo(BaseModel):
    """One GPU."""

    id: str
    name: str
    memory_total: int
    memory_free: int
    major: int
    minor: int


class GPUUtilizationInfo(BaseModel):
    """One GPU and how busy it is, in percent."""

    id: str
    name: str
    memory_total: int
    memory_free: int
    utilization_compute: int
    utilization_memory: int


class HardwareInformation(BaseModel):
    """The GPUs on which replicas run."""

    pipeline: str
    model_id: str
    gpu_info: dict[int, GPUComputeInfo]


class HardwareStats(BaseModel):
    """The GPUs on which replicas run, and how busy they are."""

    pipeline: str
    model_id: str
    gpu_stats: dict[int, GPUUtilizationInfo]


def compute_info(gpu: GPU) -> GPUComputeInfo:
    """Returns what is always so of a GPU, and its memory."""
    return GPUComputeInfo(
        id=gpu.id,
        name=gpu.name,
        memory_total=gpu.memory_total_bytes,
        memory_free=gpu.memory_free_bytes,
        major=gpu.major,
        minor=gpu.minor,
    )


def utilization_info(gpu: GPU) -> GPUUtilizationInfo:
    """Returns what a GPU is at."""
    return GPUUtilizationInfo(
        id=gpu.id,
        name=gpu.name,
        memory_total=gpu.memory_total_bytes,
        memory_free=gpu.memory_free_bytes,
        utilization_compute=gpu.compute_percent,
        utilization_memory=gpu.memory_percent,
    )


def title_of(pipeline: Pipeline) -> str:
    """Returns `Text To Image`."""
    return ALSO_NAMED.get(pipeline.name) or pipeline.name.replace("-", " ").title()


def operation_of(pipeline: Pipeline) -> dict[str, Any]:
    """Returns how its route is documented."""
    (summary, *_) = (pipeline.request.__doc__ or "").splitlines()
    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": HTTPError} for status in (400, 401, 404, 413, 500, 503)
    }
    responses[422] = {"model": HTTPValidationError}
    if pipeline.name == "audio-to-text":
        responses[415] = {"model": HTTPError}
    if pipeline.request.wants_stream is not Request.wants_stream:
        events = {"schema": {"type": "string"}}
        responses[200] = {"content": {"text/event-stream": events}}
    return {
        "operation_id": f"gen{title_of(pipeline).replace(' ', '')}",
        "summary": title_of(pipeline),
        "description": summary,
        "tags": ["generate"],
        "response_model": pipeline.response,
        "responses": responses,
    }


def body_name(pipeline: Pipeline) -> str:
    """Returns what ai-runner calls the JSON body of a pipeline."""
    if pipeline.name in ALSO_NAMED:
        return pipeline.request.__name__
    return f"{title_of(pipeline).replace(' ', '')}Params"
