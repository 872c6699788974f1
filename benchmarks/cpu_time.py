"""The CPU time of this process and all that descend from it, by what they are."""

import contextlib
from collections import defaultdict
from collections.abc import Mapping

import psutil

Times = Mapping[int, tuple[str, float]]
"""By pid: what the process is, and the CPU seconds of its life so far."""


def read(known: Mapping[int, str]) -> Times:
    """Reads the clocks of all processes.

    Args:
        known: what some are, by pid; the others are replicas, or the rest of Ray and Serve.
    """
    times: dict[int, tuple[str, float]] = {}
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        # Workers that Ray does not need any more end at any moment.
        with contextlib.suppress(psutil.NoSuchProcess):
            is_replica = process.name().startswith("ray::ServeReplica")
            kind = known.get(process.pid, "replicas" if is_replica else "the rest of Ray and Serve")
            spent = process.cpu_times()
            times[process.pid] = kind, spent.user + spent.system
    return times


def between(before: Times, after: Times) -> dict[str, float]:
    """Returns the CPU seconds between two readings, added up by what the processes are.

    Those that lived at one of the two only are left out: of their time a part is not known.
    """
    spent: defaultdict[str, float] = defaultdict(float)
    for pid in before.keys() & after.keys():
        kind, seconds = after[pid]
        spent[kind] += seconds - before[pid][1]
    return dict(spent)
