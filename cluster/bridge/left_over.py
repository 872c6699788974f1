"""The jobs that an earlier bridge took and did not answer, answered with an error."""

import asyncio
import contextlib
import logging

from pydantic import SecretStr

from cluster.bridge.job import Job
from cluster.bridge.journal import Journal
from cluster.bridge.results import Delivery, failure
from cluster.errors import InsufficientCapacity

logger = logging.getLogger(__name__)


FIRST_CHANCE_S = 3.0
"""For orchestrators that are there. Those that are not get their answers later."""


def answer_at_once(journal: Journal, *, secret: SecretStr) -> None:
    """Answers what can be answered before this process does anything else.

    A bridge takes seconds to import Ray and to find its cluster, or may not find it at all.
    """

    async def answer() -> None:
        async with Delivery(secret=secret) as delivery:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_CHANCE_S):
                    await answer_left_over(journal, delivery)

    if journal.unanswered:
        asyncio.run(answer())


async def answer_left_over(journal: Journal, delivery: Delivery) -> None:
    """Answers all of them side by side, trying as long as each one's time lasts.

    Another orchestrator process than the one that sent them has another certificate, which the
    connection does not trust: it never hears of them.
    """
    jobs = journal.left_over()
    if jobs:
        logger.warning("answering %d jobs that an earlier bridge left unanswered", len(jobs))
    await asyncio.gather(*(_answer(job, journal, delivery) for job in jobs))


async def _answer(job: Job, journal: Journal, delivery: Delivery) -> None:
    error = InsufficientCapacity("this worker was restarted")
    if await delivery.deliver(job, failure(error, job.pipeline)):
        logger.info("%s: answered: %s", job, error)
    journal.answered(job)
