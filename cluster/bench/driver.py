"""Sends requests to a model's replicas by the handle that the bridge uses, and takes the times."""

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.ai_models import ModelKey
from cluster.backends import Backend
from cluster.bench.workload import Workload
from cluster.bridge.deadlines import DEADLINE_S
from deployments.schemas.base import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One answered request."""

    seconds: float
    """From the call to the whole answer, waiting for a slot included."""
    first_s: float | None
    """To the first piece of a streamed answer; None where there are no pieces."""
    units: float
    """Of the workload."""
    scored: float
    """What the network divides the seconds by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """What came of a number of clients at the same time."""

    concurrency: int
    seconds: float
    """From the first call to the last answer."""
    jobs: Sequence[Job]

    def percentile_s(self, percent: int) -> float:
        """Of the jobs' seconds."""
        return percentile([job.seconds for job in self.jobs], percent)

    def first_percentile_s(self, percent: int) -> float | None:
        """Of the seconds to the first piece; None where nothing is streamed."""
        times = [job.first_s for job in self.jobs if job.first_s is not None]
        return percentile(times, percent) if times else None

    @property
    def units_per_s(self) -> float:
        """Throughput, over all clients."""
        return sum(job.units for job in self.jobs) / self.seconds

    @property
    def score(self) -> float:
        """The median of what a gateway would note of each job."""
        return statistics.median(job.seconds / job.scored for job in self.jobs)


def percentile(values: Sequence[float], percent: int) -> float:
    """Returns the value below which so many percent lie; of one value, that."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


async def measure(
    backend: Backend,
    key: ModelKey,
    workload: Workload,
    *,
    levels: Sequence[int],
    runs: int,
    say: Callable[[str], None],
) -> list[Level]:
    """Measures one level after the other.

    Args:
        backend: of the cluster.
        key: the model.
        workload: its requests.
        levels: numbers of clients, each of which has one request at a time.
        runs: requests of a level; as many as clients where that is more.
        say: told what is done.

    Raises:
        JobError: a request was not served.
    """
    # The first call makes the handle, which asks Serve's controller.
    await _job(backend, key, workload, workload.request(0))
    number = 1
    measured: list[Level] = []
    for clients in levels:
        jobs = max(runs, clients)
        say(f"{jobs} requests, {clients} at a time")
        # Made before the clock runs: they cost this process time that others pay elsewhere.
        requests = [workload.request(number + index) for index in range(jobs)]
        number += jobs
        measured.append(await _level(backend, key, workload, requests, clients))
    return measured


async def _level(
    backend: Backend, key: ModelKey, workload: Workload, requests: list[Request], clients: int
) -> Level:
    left = iter(requests)

    async def client() -> list[Job]:
        return [await _job(backend, key, workload, request) for request in left]

    began = time.perf_counter()
    done = await asyncio.gather(*(client() for _ in range(clients)))
    seconds = time.perf_counter() - began
    return Level(concurrency=clients, seconds=seconds, jobs=[job for jobs in done for job in jobs])


async def _job(backend: Backend, key: ModelKey, workload: Workload, request: Request) -> Job:
    began = time.perf_counter()
    first_s: float | None = None
    answer: Any
    if request.wants_stream:
        async for chunk in backend.stream(key, request, timeout_s=DEADLINE_S):
            first_s = first_s or time.perf_counter() - began
            answer = chunk
    else:
        answer = (await backend.run(key, request, timeout_s=DEADLINE_S)).result
    seconds = time.perf_counter() - began
    work = workload.work
    units, scored = work.units, work.scored
    if not scored:
        usage = answer.usage
        units, scored = usage.completion_tokens, usage.prompt_tokens + usage.completion_tokens
    return Job(seconds=seconds, first_s=first_s, units=units, scored=scored)
