"""What a worker adds to the model's own time: ours against the reference's, in one run.

    python -m benchmarks.overhead [--json FILE]

One fixed photo-like picture of 1024x1024 stands for the model's output. Ours is the real path:
a Serve replica on a local Ray cluster, the bridge, gRPC and TLS to a loopback orchestrator. The
reference's is an imitation in the same bridge (benchmarks/reference.py says what it leaves
out, all of it in the reference's favour). Blocks of both alternate, so that whatever else the
machine does hits both. A job's time is from its arrival at the bridge to the acceptance of its
answer. Exit status: 1 when the ratio is under what we promise, 2 when there are no figures.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# Before numpy, grpc and Ray are imported: one thread a process on small machines, and no lines
# from gRPC's own logger.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import numpy as np
import ray
from numpy.typing import NDArray

from benchmarks.photo import photo
from benchmarks.reference import reference_path
from benchmarks.rig import (
    OURS,
    REFERENCE,
    SLOTS,
    Rig,
    Timing,
    deploy,
    running_rig,
)
from cluster import logs, machine
from cluster.errors import LivepeerRayError
from deployments.media import encode_png

WANTED_RATIO = 8.0
"""At concurrency 1, by the medians."""

ROUNDS = 5
JOBS_PER_BLOCK = {1: 12, SLOTS: 16}
"""By concurrency; in every round one block of each path."""

WARM_UP_JOBS = SLOTS

EXIT_TOO_SLOW, EXIT_FAILED = 1, 2

PATHS = {"ours": OURS, "reference": REFERENCE}

Timings = dict[tuple[str, int], list[Timing]]
"""By path and concurrency."""


def main() -> int:
    """Measures, prints, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.overhead", description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    arguments = parser.parse_args()
    logs.configure(as_json=False)
    where = machine.describe()
    pixels = photo()
    try:
        with tempfile.TemporaryDirectory(prefix="livepeer-ray-bench-") as models_dir:
            print("starting a local Ray cluster and the worker", flush=True)
            deploy(pixels, models_dir=Path(models_dir))
            timings = asyncio.run(_measure(pixels))
    except LivepeerRayError as error:
        print(f"no figures: {error}", file=sys.stderr)
        return EXIT_FAILED
    finally:
        ray.shutdown()
    report = _report(timings, where, pixels)
    print(_table(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    ratio = report["ratio"]["1"]["p50"]
    if ratio < WANTED_RATIO:
        print(f"TOO SLOW: {ratio:.1f} times at concurrency 1, wanted {WANTED_RATIO:g}")
        return EXIT_TOO_SLOW
    return 0


async def _measure(pixels: NDArray[np.uint8]) -> Timings:
    timings: Timings = {(path, jobs): [] for jobs in JOBS_PER_BLOCK for path in PATHS}
    async with running_rig(pixels) as rig:
        print("warming up", flush=True)
        for key in PATHS.values():
            await rig.block(key, concurrency=SLOTS, jobs=WARM_UP_JOBS)
        for number in range(ROUNDS):
            print(f"round {number + 1} of {ROUNDS}", flush=True)
            await _round(rig, timings)
    return timings


async def _round(rig: Rig, timings: Timings) -> None:
    for concurrency, jobs in JOBS_PER_BLOCK.items():
        for path, key in PATHS.items():
            timings[path, concurrency] += await rig.block(key, concurrency=concurrency, jobs=jobs)


def _report(timings: Timings, where: dict[str, Any], pixels: NDArray[np.uint8]) -> dict[str, Any]:
    """The figures as JSON, times in milliseconds."""
    figures = {
        path: {
            str(concurrency): _percentiles(timing.total_s for timing in timings[path, concurrency])
            for concurrency in JOBS_PER_BLOCK
        }
        for path in PATHS
    }
    alone = timings["ours", 1]
    return {
        "machine": where,
        "png_bytes": {
            "ours": len(encode_png(pixels).data),
            "reference": len(reference_path(pixels)),
        },
        "total_ms": figures,
        "ratio": {
            concurrency: {
                name: round(figures["reference"][concurrency][name] / ours[name], 2)
                for name in ("p50", "p95")
            }
            for concurrency, ours in figures["ours"].items()
        },
        "split_of_ours_alone_ms": {
            "replica": _percentiles(timing.compute_s for timing in alone),
            "between": _percentiles(timing.between_s for timing in alone),
            "deliver": _percentiles(timing.deliver_s for timing in alone),
        },
    }


def _percentiles(times_s: Iterable[float]) -> dict[str, float]:
    times_ms = [time_s * 1000 for time_s in times_s]
    return {
        "p50": round(statistics.median(times_ms), 2),
        "p95": round(statistics.quantiles(times_ms, n=20, method="inclusive")[-1], 2),
        "jobs": len(times_ms),
    }


def _table(report: dict[str, Any]) -> str:
    """The report for people."""
    sizes = report["png_bytes"]
    ours, reference = report["total_ms"]["ours"], report["total_ms"]["reference"]
    rows: list[Sequence[str]] = [("concurrency", "", "ours", "reference", "ratio", "jobs each")]
    rows += [
        (
            concurrency,
            name,
            f"{ours[concurrency][name]:.1f} ms",
            f"{reference[concurrency][name]:.1f} ms",
            f"{ratios[name]:.1f}",
            str(ours[concurrency]["jobs"]),
        )
        for concurrency, ratios in report["ratio"].items()
        for name in ("p50", "p95")
    ]
    split = report["split_of_ours_alone_ms"]
    meaning = {
        "replica": "in the replica: encode the PNG",
        "between": "read the job, Serve handle, object store",
        "deliver": "upload over TLS until accepted",
    }
    lines = [
        "",
        "Per job, from its arrival at the bridge to the acceptance of its answer:",
        "",
        *("  ".join(f"{cell:>11}" for cell in row) for row in rows),
        "",
        "Where ours goes at concurrency 1 (p50):",
        *(f"  {split[name]['p50']:6.1f} ms  {text}" for name, text in meaning.items()),
        "",
        f"PNG: ours {sizes['ours']:,} bytes, reference {sizes['reference']:,} bytes",
        machine.text(report["machine"]),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
