"""Whether a container can be given jobs: what `/health` says, and how it answered its jobs.

    not yet asked ──ok──▶ ready ──two failures in a row──▶ not ready ──ok──▶ ready

A failure is a health check that fails, or a job's connection that does. Silence is none while a
job runs there: ai-runner computes in its event loop and answers nobody meanwhile
(runner/src/runner/routes/text_to_image.py and others). Whether it hangs, the job's deadline tells.

A container that is healthy and answers two jobs in a row with what is no answer (a wrong token, a
wrong address, a page of a proxy) rests for a while: asking it would not tell whether that changed.

The waiting at the start is go-livepeer's (ai/worker/container.go); there, nobody asks again later.
There too a container that loads counts as ready. Its jobs would fail, so here it does not.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cluster.errors import NoAnswer, NotHealthy
from deployments.hardware import GPU

logger = logging.getLogger(__name__)

START_S = 120.0
"""For a container to become healthy, before that is an error in the log."""

START_INTERVAL_S = 0.5
"""Between two checks meanwhile."""

INTERVAL_S = 5.0
"""Between two checks later on."""

MAX_FAILURES = 2
"""In a row, as the reference bears of the containers that it manages itself."""

REST_S = 30.0
"""After answers that were none. Short enough for a token that was corrected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a healthy container tells of itself, as far as it does."""

    version: str = ""
    """Of the runner."""
    gpus: tuple[GPU, ...] = ()


class Health:
    """One container's. `watch` asks it, and the backend tells of its jobs."""

    def __init__(
        self,
        *,
        name: str,
        check: Callable[[], Awaitable[None]],
        read_facts: Callable[[], Awaitable[Facts]],
        start_s: float = START_S,
        interval_s: float = INTERVAL_S,
        rest_s: float = REST_S,
    ) -> None:
        """Takes how to ask.

        Args:
            name: of the container, for the log.
            check: returns for a healthy one and raises `NotHealthy` otherwise, in bounded time.
            read_facts: asked whenever it becomes ready; never raises.
            start_s: before one that never was ready is an error.
            interval_s: between two checks.
            rest_s: without jobs, after answers that were none.
        """
        self.facts = Facts()
        self._name = name
        self._check = check
        self._read_facts = read_facts
        self._start_s = start_s
        self._interval_s = interval_s
        self._rest_s = rest_s
        self._ready = False
        self._why = "it has not answered yet"
        self._failures = 0
        self._misfits = 0
        self._resting_until = 0.0
        self._jobs = 0

    @property
    def ready(self) -> bool:
        """Whether to give it jobs."""
        return self._ready and not self._resting

    @property
    def why_not(self) -> str:
        """Why it is not ready; empty for one that is."""
        return "" if self.ready else self._why

    @property
    def _resting(self) -> bool:
        return asyncio.get_running_loop().time() < self._resting_until

    @contextmanager
    def job(self) -> Iterator[None]:
        """A job runs there."""
        self._jobs += 1
        try:
            yield
        finally:
            self._jobs -= 1

    def unreachable(self, why: str) -> None:
        """A job's connection could not be made, or broke."""
        self._failed(why)

    def misfit(self, why: str) -> None:
        """A job got an answer that is none, for which the job is not to blame."""
        self._misfits += 1
        if self._misfits >= MAX_FAILURES and not self._resting:
            self._why = why
            self._resting_until = asyncio.get_running_loop().time() + self._rest_s
            logger.error("%s gets no jobs for %.0f s: %s", self._name, self._rest_s, why)

    def answered(self) -> None:
        """A job got an answer, be it an error that the job is to blame for."""
        self._misfits = 0

    async def watch(self) -> None:
        """Asks for ever; to be cancelled."""
        clock = asyncio.get_running_loop().time
        late_at = clock() + self._start_s
        starting = True
        while True:
            working = self._jobs > 0
            try:
                await self._check()
            except NotHealthy as error:
                if not (isinstance(error, NoAnswer) and (working or self._jobs)):
                    self._failed(str(error))
            else:
                await self._healthy()
                starting = False
            if starting and clock() >= late_at:
                starting = False
                logger.error(
                    "%s is not healthy after %.0f s: %s; it is asked on",
                    self._name,
                    self._start_s,
                    self._why,
                )
            soon_s = min(START_INTERVAL_S, self._interval_s)
            await asyncio.sleep(soon_s if starting else self._interval_s)

    async def _healthy(self) -> None:
        self._failures = 0
        if not self._ready:
            self.facts = await self._read_facts()
            self._ready = True
            gpus = ", ".join(gpu.name for gpu in self.facts.gpus) or "no GPU reported"
            logger.info(
                "%s is ready: runner %s, %s", self._name, self.facts.version or "unknown", gpus
            )

    def _failed(self, why: str) -> None:
        self._failures += 1
        if self._ready and self._failures < MAX_FAILURES:
            logger.warning("%s: %s", self._name, why)
            return
        self._why = why
        if self._ready:
            self._ready = False
            logger.error("%s gets no jobs until it is healthy again: %s", self._name, why)
