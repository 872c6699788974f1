"""Every job of one orchestrator process, as its log tells it up to the moment of its death.

A log, because it is the one thing that is left of an orchestrator that is killed. Its words are
those of cluster/loopback; a line that reads otherwise one day leaves jobs unanswered here, which
nobody can miss.
"""

import re
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum


class End(StrEnum):
    """What became of a job."""

    RESULT = "result"
    ERROR = "error"
    """In the worker's words, or an answer that the orchestrator could not read."""
    NOT_SENT = "not sent"
    """Its worker had left before it was written: it goes to another as another job."""
    LOST = "lost"
    """Not answered though its orchestrator waits for it."""
    ORPHANED = "orphaned"
    """Its orchestrator was killed before it was answered."""
    NEVER_CAME = "never came"
    """It was sent down a connection that was dead, and the worker never heard of it."""


_HANDED_OUT = re.compile(r"((?:job|request) \d+): \S+, handed to (\S+)")
_LEFT = re.compile(r"worker (\S+) disconnected")
_ENDS = {
    End.RESULT: re.compile(r"((?:job|request) \d+) answered with"),
    End.ERROR: re.compile(r"((?:job|request) \d+) failed: (.*)"),
    End.NOT_SENT: re.compile(r"(job \d+): its worker has left"),
}
_LATE = re.compile(r"duplicate or unknown answer from \S+ job (\d+)")
_FAULT = re.compile(r"FAULT of the worker at .*")


@dataclass(slots=True, kw_only=True)
class Job:
    """One job, or one request to a live runner; times by the monotonic clock."""

    name: str
    """`job 7`, `request 7`: each kind has numbers of its own."""
    peer: str
    """The connection that it was sent down, or the live runner."""
    handed_out_at: float
    end: End | None = None
    ended_at: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Jobs between two moments."""

    handed_out: int = 0
    """Less those that were not sent."""
    results: int = 0
    errors: int = 0
    orphaned: int = 0
    """Open when their orchestrator was killed: nobody waits for them any more."""
    never_came: int = 0
    """Sent down a connection that was dead."""
    lost: int = 0
    """Taken by the worker and not answered, though their orchestrator waits for them."""
    twice: int = 0
    """Answers to jobs that nobody waits for: answered before, or another process's."""

    def __add__(self, other: "Counts") -> "Counts":
        """Returns both together."""
        return Counts(
            **{name: getattr(self, name) + getattr(other, name) for name in self.__slots__}
        )


@dataclass(slots=True)
class Ledger:
    """The jobs of one orchestrator process."""

    jobs: dict[str, Job] = field(default_factory=dict)
    """By name."""
    failing: bool = False
    """Whether the latest answer was an error, of those that were awaited."""
    late: list[tuple[float, int]] = field(default_factory=list)
    """When an answer came for which nobody waited, and to which task id."""
    faults: list[str] = field(default_factory=list)
    """What the worker did wrong besides."""
    _left: set[str] = field(default_factory=set)
    """Connections that have ended."""

    def read(self, line: str) -> None:
        """Takes a line of the log, as soon as it is written."""
        now = time.monotonic()
        if found := _HANDED_OUT.search(line):
            self.jobs[found[1]] = Job(name=found[1], peer=found[2], handed_out_at=now)
            return
        if found := _LEFT.search(line):
            self._left.add(found[1])
            return
        if found := _LATE.search(line):
            self.late.append((now, int(found[1])))
            return
        if found := _FAULT.search(line):
            self.faults.append(found[0])
            return
        for end, pattern in _ENDS.items():
            if found := pattern.search(line):
                job = self.jobs[found[1]]
                job.error = found[2] if end is End.ERROR else ""
                if job.end is None and end is not End.NOT_SENT:
                    self.failing = end is End.ERROR
                job.end, job.ended_at = end, now

    def open_jobs(self) -> list[Job]:
        """Those that wait for an answer."""
        return [job for job in self.jobs.values() if job.end is None]

    def was_cut_off(self, job: Job) -> bool:
        """Whether the connection has ended that a job was sent down."""
        return job.peer in self._left

    def end(self, end: End) -> None:
        """Says what became of all that is still open: no answer is awaited any more."""
        for job in self.open_jobs():
            job.end, job.ended_at = end, time.monotonic()
        self.failing = False

    def since(self, moment: float) -> Counts:
        """What became of the jobs that were open at a moment or handed out later."""
        jobs = [
            job
            for job in self.jobs.values()
            if job.end is not End.NOT_SENT and (job.end is None or job.ended_at >= moment)
        ]
        ends = Counter(job.end for job in jobs)
        return Counts(
            handed_out=len(jobs),
            results=ends[End.RESULT],
            errors=ends[End.ERROR],
            orphaned=ends[End.ORPHANED],
            never_came=ends[End.NEVER_CAME],
            lost=ends[End.LOST],
            twice=sum(came >= moment for came, _ in self.late),
        )


def total(ledgers: Iterable[Ledger], *, since: float) -> Counts:
    """The counts of several orchestrator processes, one after the other."""
    return sum((ledger.since(since) for ledger in ledgers), Counts())
