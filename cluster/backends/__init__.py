"""Where a job's work is done. Every backend serves one or many models through `Backend`."""

from collections.abc import AsyncGenerator
from typing import Protocol

from cluster.ai_models import ModelKey
from deployments.schemas.base import Chunk, Completed, Request, Result


class Backend(Protocol):
    """Runs validated requests. Cancelling `run`, or closing `stream`, stops the work behind it."""

    async def run(self, key: ModelKey, request: Request, *, timeout_s: float) -> Completed[Result]:
        """Returns the result.

        Args:
            key: the model.
            request: what it is to do.
            timeout_s: after which the work stops even if nobody is left to cancel it.

        Raises:
            ReplicaLost: the work may be done again.
            JobError: the request was not served; which kind says who should try next.
        """
        ...

    def stream(
        self, key: ModelKey, request: Request, *, timeout_s: float
    ) -> AsyncGenerator[Chunk, None]:
        """Yields the answer's chunks as they are computed; the last one finishes the stream.

        Args:
            key: the model.
            request: what it is to do.
            timeout_s: as for `run`.

        Raises:
            ReplicaLost: as `run`.
            JobError: as `run`, before the first chunk or between any two.
        """
        ...
