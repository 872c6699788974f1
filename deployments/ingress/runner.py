"""Runs requests on the replicas of a model, through Serve's handles."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Protocol

from ray import serve
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.serve.exceptions import RayServeException

from deployments import handle_calls
from deployments.errors import InferenceFailed, ReplicaBroken, ReplicaError
from deployments.handle_calls import ModelHandle
from deployments.hardware import GPU
from deployments.ingress.config import ServedModel
from deployments.ingress.errors import Overloaded, Refused, ReplicaGone
from deployments.replica import DEADLINE_S
from deployments.schemas.base import Chunk, Request, Result

logger = logging.getLogger("ray.serve")

ATTEMPTS = 2
"""A request whose replica died is run again: Serve itself does not, once it has begun. One that
kills two replicas is not let near a third."""

DEATHS = (RayActorError, NodeDiedError, ObjectLostError, OutOfMemoryError, WorkerCrashedError)
"""What is raised when a replica or its node ends or cannot be reached."""


FACTS_TIMEOUT_S = 3.0
"""For the replicas to tell their GPUs, for which go-livepeer waits 5 s."""


class Runner(Protocol):
    """Where the work is done. Cancelling `run`, or closing `stream`, stops it."""

    async def run(self, model: ServedModel, request: Request) -> Result:
        """Returns the result.

        Raises:
            ReplicaError: the model did not serve it.
            Overloaded: no replica is there for it.
        """
        ...

    def stream(self, model: ServedModel, request: Request) -> AsyncGenerator[Chunk, None]:
        """Yields the answer's chunks as they are computed; errors as `run`."""
        ...

    async def gpus(self, model: ServedModel) -> Sequence[GPU]:
        """Tells the GPUs of the model's replicas; none where they do not answer."""
        ...


class HandleRunner:
    """One handle per model, made for its first request."""

    def __init__(self) -> None:
        """Makes no connection yet."""
        self._handles: dict[str, ModelHandle] = {}
        self._gpus: dict[str, Sequence[GPU]] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}

    async def run(self, model: ServedModel, request: Request) -> Result:
        """Runs one request; see `Runner.run`."""
        for _ in range(ATTEMPTS - 1):
            try:
                return await self._run(model, request)
            except ReplicaGone:
                continue
        return await self._run(model, request)

    async def _run(self, model: ServedModel, request: Request) -> Result:
        try:
            completed = await handle_calls.run(
                await self._handle(model), request, timeout_s=DEADLINE_S
            )
        except (RayError, RayServeException) as error:
            raise self._failed(error, model) from error
        return completed.result

    async def stream(self, model: ServedModel, request: Request) -> AsyncGenerator[Chunk, None]:
        """Streams one answer; see `Runner.stream`."""
        try:
            handle = await self._handle(model)
            async with aclosing(
                handle_calls.stream(handle, request, timeout_s=DEADLINE_S)
            ) as chunks:
                async for chunk in chunks:
                    yield chunk
        except (RayError, RayServeException) as error:
            raise self._failed(error, model) from error

    async def gpus(self, model: ServedModel) -> Sequence[GPU]:
        """Asks all replicas; see `Runner.gpus`.

        A busy one answers when it has a slot, so what was told last is told again meanwhile, and
        no model is asked twice at a time.
        """
        if model.app not in self._asking:
            self._asking[model.app] = asyncio.create_task(self._ask_gpus(model))
        await asyncio.wait({self._asking[model.app]}, timeout=FACTS_TIMEOUT_S)
        return self._gpus.get(model.app, ())

    async def _ask_gpus(self, model: ServedModel) -> None:
        try:
            handle = await self._handle(model)
            answers = await handle.broadcast("gpus").results_async(
                timeout_s=DEADLINE_S, return_exceptions=True
            )
            told = [answer for answer in answers if isinstance(answer, list)]
            self._gpus[model.app] = [gpu for gpus in told for gpu in gpus]
        except (RayError, RayServeException, TimeoutError) as error:
            logger.info("%s does not tell its GPUs: %s", model.key, type(error).__name__)
        finally:
            del self._asking[model.app]

    async def _handle(self, model: ServedModel) -> ModelHandle:
        if model.app not in self._handles:
            # Asks the controller, which may take a while: off the event loop.
            self._handles[model.app] = await asyncio.to_thread(serve.get_app_handle, model.app)
        return self._handles[model.app]

    def _failed(self, error: Exception, model: ServedModel) -> Exception:
        if not isinstance(error, RayTaskError):
            # Not from the replica: the handle may belong to a Serve that was shut down.
            self._handles.pop(model.app, None)
        return as_refusal(error, model)


def as_refusal(error: Exception, model: ServedModel) -> Refused | ReplicaError:
    """Sorts what a handle raised by what the request is answered with."""
    if isinstance(error, RayTaskError):
        # The replica's own exception; the wrapper's text is a whole remote traceback.
        cause = error.cause
        if isinstance(cause, ReplicaBroken):
            return ReplicaGone(f"the replica of {model.key} broke down: {cause}")
        if isinstance(cause, ReplicaError):
            return cause
        return InferenceFailed(f"{type(cause).__name__}: {_first_line(cause)}")
    if isinstance(error, DEATHS):
        return ReplicaGone(f"the replica of {model.key} died while it ran the request")
    if isinstance(error, RayServeException):
        return Overloaded(f"{model.key} has no replica now")
    return InferenceFailed(f"{type(error).__name__}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")
