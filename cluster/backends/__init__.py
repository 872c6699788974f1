"""Where a job's work is done. Every backend serves one or many models through `Backend`."""

from typing import Protocol

from cluster.ai_models import ModelKey
from deployments.schemas.base import Completed, Request, Result


class Backend(Protocol):
    """Runs validated requests. Cancelling `run` stops the work behind it."""

    async def run(self, key: ModelKey, request: Request) -> Completed[Result]:
        """Returns the result.

        Raises:
            JobError: the request was not served; which kind says who should try next.
        """
        ...
