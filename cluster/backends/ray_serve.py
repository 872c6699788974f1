"""Runs requests on Serve replicas through deployment handles, and reads their failures."""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing

from ray import serve
from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
)

from cluster.ai_models import ModelKey
from cluster.errors import (
    BadRequest,
    InsufficientCapacity,
    JobError,
    JobFailed,
    JobRejected,
    ReplicaBroken,
    ReplicaError,
    ReplicaLost,
)
from cluster.serve_config import app_name
from deployments import handle_calls
from deployments.handle_calls import ModelHandle
from deployments.schemas.base import Chunk, Completed, Request, Result

AWAY = (ActorUnavailableError, NodeDiedError, ObjectLostError)
"""What is raised when a replica's node dies or cannot be reached, before or after the result."""

DEATHS = (RayActorError, OutOfMemoryError, WorkerCrashedError)
"""What is raised when its process ends; `ActorUnavailableError` is one of the first's kinds."""

WITH_ITS_NODE = "its node has died"
"""How Ray 2.60 words the death of an actor that went with its node. It knows the reason and keeps
only the words, but for a preemption (ray/exceptions.py `ActorDiedError`)."""


class RayBackend:
    """One handle per model, made on its first job. Must be used in the driver's event loop."""

    def __init__(self) -> None:
        """Makes no connection yet."""
        self._handles: dict[ModelKey, ModelHandle] = {}

    async def run(self, key: ModelKey, request: Request, *, timeout_s: float) -> Completed[Result]:
        """Runs one request on a replica of the model; see `Backend.run`."""
        try:
            return await handle_calls.run(await self._handle(key), request, timeout_s=timeout_s)
        except Exception as error:
            raise self._failed(error, key) from error

    async def stream(
        self, key: ModelKey, request: Request, *, timeout_s: float
    ) -> AsyncGenerator[Chunk, None]:
        """Streams one answer from a replica of the model; see `Backend.stream`."""
        try:
            handle = await self._handle(key)
            async with aclosing(
                handle_calls.stream(handle, request, timeout_s=timeout_s)
            ) as chunks:
                async for chunk in chunks:
                    yield chunk
        except Exception as error:
            raise self._failed(error, key) from error

    def _failed(self, error: Exception, key: ModelKey) -> JobError:
        if not isinstance(error, RayTaskError):
            # Not from the replica: the handle may belong to a Serve that was shut down.
            self._handles.pop(key, None)
        return as_job_error(error, key)

    async def _handle(self, key: ModelKey) -> ModelHandle:
        if key not in self._handles:
            # Asks the controller, which may take a while: off the event loop.
            self._handles[key] = await asyncio.to_thread(serve.get_app_handle, app_name(key))
        return self._handles[key]


def as_job_error(error: Exception, key: ModelKey) -> JobError:
    """Sorts what a handle raised by what should happen to the job.

    Replica and node deaths are capacity that went away under the job: it can be run again here
    or elsewhere, and our orchestrator is not at fault.
    """
    if isinstance(error, RayTaskError):
        # The replica's own exception; the wrapper's text is a whole remote traceback.
        cause = error.cause
        if isinstance(cause, BadRequest):
            return JobRejected(str(cause))
        if isinstance(cause, ReplicaBroken):
            return ReplicaLost(f"the replica of {key} broke down: {cause}")
        if isinstance(cause, ReplicaError):
            return JobFailed(str(cause))
        return JobFailed(f"{type(cause).__name__}: {_first_line(cause)}")
    with_its_node = isinstance(error, RayActorError) and WITH_ITS_NODE in str(error)
    if with_its_node or isinstance(error, AWAY):
        return ReplicaLost(f"the node of {key}'s replica went away")
    if isinstance(error, DEATHS):
        return ReplicaLost(f"the replica of {key} died while it ran the job", dead=_name(error))
    if isinstance(error, BackPressureError):
        return InsufficientCapacity(f"every replica of {key} is busy")
    if isinstance(error, DeploymentUnavailableError | ReplicaUnavailableError):
        return InsufficientCapacity(f"{key} has no replica now")
    if isinstance(error, RayServeException):
        return InsufficientCapacity(f"{key} is not deployed: {_first_line(error)}")
    return JobFailed(f"{type(error).__name__}: {_first_line(error)}")


def _name(death: Exception) -> str:
    """What tells a death from others, and is the same for all jobs that it ended."""
    if isinstance(death, RayActorError) and death.actor_id:
        return death.actor_id
    if isinstance(death, OutOfMemoryError):
        # It has no id. But its words name the processes that were ended, and when memory was short.
        return hashlib.sha256(str(death).encode()).hexdigest()
    # Without a name for it, it is taken for another replica's.
    return secrets.token_hex(8)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")
