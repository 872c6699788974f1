"""The jobs that an earlier bridge took and did not answer, answered with an error."""

import asyncio
import logging

from cluster.bridge.job import Job
from cluster.bridge.journal import Journal
from cluster.bridge.results import Delivery, failure
from cluster.errors import InsufficientCapacity

logger = logging.getLogger(__name__)


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
