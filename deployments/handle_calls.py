"""A request to a replica through Serve's handle, and how it is really called off.

Cancelling the task that waits does not reach the replica, and a stream that nobody reads runs to
its end and holds its slot (Ray 2.60): only the response's own `cancel` ends either.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import cast

from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from deployments.schemas.base import Chunk, Completed, Request, Result

ModelHandle = DeploymentHandle[Completed[Result]]
"""Of a deployment of replicas."""


async def run(handle: ModelHandle, request: Request, *, timeout_s: float) -> Completed[Result]:
    """Runs one request on a replica; cancelling this stops it there.

    Raises:
        RayError: what the replica raised is the cause of a `RayTaskError`.
        RayServeException: there is no replica for it.
    """
    response = handle.run.remote(request, timeout_s=timeout_s)
    try:
        completed: Completed[Result] = await response
    except asyncio.CancelledError:
        response.cancel()  # type: ignore[no-untyped-call]
        raise
    return completed


async def stream(
    handle: ModelHandle, request: Request, *, timeout_s: float
) -> AsyncGenerator[Chunk, None]:
    """Yields the chunks of one answer; closing this stops the replica. Errors as `run`."""
    response = cast(
        "DeploymentResponseGenerator[Chunk]",
        handle.options(stream=True).stream.remote(request, timeout_s=timeout_s),
    )
    try:
        async for chunk in response:
            yield chunk
    finally:
        response.cancel()  # type: ignore[no-untyped-call]
