"""What the journal of unanswered jobs costs a job: microseconds of the bridge's event loop.

    python -m benchmarks.journal [--state-dir DIRECTORY] [--json FILE]

A job is two lines, taken and answered. `as it is` writes them at once and has the disk keep them
off the event loop; `without fsync` shows what that costs on top of writing, and `waiting for the
disk` what it would cost every job to go on only when its line is safe. Blocks of the three
alternate, so that whatever else the machine does hits all. A process that is killed loses nothing
that was written; a machine that loses power, what was written during the last two syncs, and `one
sync` is how long such a one takes.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks import machine
from cluster.bridge.address import Address
from cluster.bridge.job import Job
from cluster.bridge.journal import Journal, open_journal
from cluster.bridge.peer import peer_with
from cluster.loopback.certificate import make_certificate

JOBS_PER_BLOCK = 500
ROUNDS = 8
PAUSE_S = 0.001
"""Between jobs, so that syncs happen as they do at a thousand jobs a second, and not as one."""

ADDRESS = Address("orchestrator.example", 8935)


def main() -> int:
    """Measures, prints, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.journal", description=__doc__.split("\n")[0])
    parser.add_argument("--state-dir", type=Path, help="on the disk to measure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    arguments = parser.parse_args()
    where = machine.describe()
    with tempfile.TemporaryDirectory(prefix="livepeer-ray-", dir=arguments.state_dir) as directory:
        figures = asyncio.run(_measure(Path(directory)))
    report = {"machine": where, "jobs": ROUNDS * JOBS_PER_BLOCK, "microseconds": figures}
    for name, times in figures.items():
        columns = "".join(f"   {what} {us:9.1f}" for what, us in times.items())
        print(f"{name:24}{columns} us")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


async def _measure(directory: Path) -> dict[str, dict[str, float]]:
    taken: dict[str, list[float]] = {
        "as it is": [],
        "without fsync": [],
        "waiting for the disk": [],
    }
    all_syncs: list[float] = []
    for _ in range(ROUNDS):
        for name, times in taken.items():
            syncs: list[float] = []
            with _syncing(name, syncs):
                journal = open_journal(directory, addresses=[ADDRESS])
                try:
                    times += await _block(journal, waiting=name == "waiting for the disk")
                    await _synced(journal)
                finally:
                    journal.close()
            if name == "as it is":
                all_syncs += syncs
    return {
        **{name: _summary(times) for name, times in taken.items()},
        "one sync": _summary(all_syncs),
    }


async def _block(journal: Journal, *, waiting: bool) -> list[float]:
    """Seconds of the event loop that each job costs."""
    times = []
    peer = peer_with(ADDRESS, make_certificate(ADDRESS.host).pem)
    for task_id in range(JOBS_PER_BLOCK):
        job = Job(task_id=task_id, pipeline="text-to-image", data=b"", peer=peer, received_at=0.0)
        began = time.perf_counter()
        for note in (journal.taken, journal.answered):
            note(job)
            if waiting:
                os.fsync(journal._file)
        times.append(time.perf_counter() - began)
        await asyncio.sleep(PAUSE_S)
    return times


async def _synced(journal: Journal) -> None:
    """Waits for the last sync."""
    while journal._syncing is not None and not journal._syncing.done():
        await journal._syncing


@contextmanager
def _syncing(name: str, durations: list[float]) -> Iterator[None]:
    """Measures the journal's own syncs, or does without them."""
    sync: Callable[[int], None] = os.fdatasync

    def measured(file: int) -> None:
        began = time.perf_counter()
        sync(file)
        durations.append(time.perf_counter() - began)

    with patch("os.fdatasync", measured if name == "as it is" else lambda _: None):
        yield


def _summary(seconds: list[float]) -> dict[str, Any]:
    p95 = statistics.quantiles(seconds, n=20)[-1]
    return {
        "p50": round(statistics.median(seconds) * 1e6, 1),
        "p95": round(p95 * 1e6, 1),
        "least": round(min(seconds) * 1e6, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
