"""From a process's start to its first picture: our replica against a plainly written one.

    python -m benchmarks.cold_start [--json FILE] [--rounds N]

Both are processes that import Ray Serve, load the same Stable Diffusion model with random weights
and render the same picture, without a cluster around them. The plain one is what diffusers' own
documentation shows: `AutoPipelineForText2Image.from_pretrained(...)` and a call. Ours is the
replica class; the picture is its warm-up. Two models, a tiny one and one whose text encoder is a
gigabyte (large files, little computing), each with its weights on the disk alone and in the page
cache. Rounds of all alternate. Told are the seconds, the CPU seconds, which heed no other load on
the machine, and the most memory that a process had, of which mapped files are a part.

Then the replica of every pipeline is started once with its tiny model, and the parts of its start
are told.

Exit status: 2 when there are no figures.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

# Before torch starts its threads, here and in the children.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from cluster import machine
from deployments.errors import LivepeerRayError
from deployments.tiny_models import ORGANISATION, RECIPES

EXIT_FAILED = 2

LARGE_ENCODER: Mapping[str, Any] = {
    "num_hidden_layers": 12,
    "hidden_size": 1280,
    "intermediate_size": 5120,
}
"""240 million parameters, 0.95 GB in the 32 bits that CPUs compute in."""

MODELS: Mapping[str, Mapping[str, Any]] = {"tiny": {}, "1 GB": LARGE_ENCODER}
WAYS = ("plain", "ours")
ON_DISK = "on the disk alone"
FILES = (ON_DISK, "in the page cache")

PLAIN = """
from pathlib import Path
import sys
import torch
from ray import serve
from diffusers import AutoPipelineForText2Image
from huggingface_hub import snapshot_download
snapshot = snapshot_download(sys.argv[2], cache_dir=sys.argv[1], local_files_only=True)
pipe = AutoPipelineForText2Image.from_pretrained(snapshot).to("cpu")
images = pipe("warm-up", width=512, height=512, num_inference_steps=2).images
images[0].save("/dev/null", "PNG")
print("{}", flush=True)
"""

OURS = """
import json, sys
from pathlib import Path
from deployments.app import replica_class
from deployments.model_args import ModelArgs
models_dir, model_id, pipeline = sys.argv[1:]
made = replica_class(pipeline, model_id)(
    args=ModelArgs(pipeline=pipeline, model_id=model_id, models_dir=Path(models_dir))
)
print(json.dumps(made.start_up.seconds), flush=True)
"""

AT_ONCE = """
import os
os._exit(0)
"""
"""What a process takes to tidy up is not its start."""


def main() -> int:
    """Measures, prints, and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.cold_start", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--rounds", type=int, default=3, help="of every start")
    arguments = parser.parse_args()
    where = machine.describe()
    runs: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="livepeer-ray-bench-") as directory:
            _write_models(Path(directory))
            for number in range(arguments.rounds):
                print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
                for model, files, way in itertools.product(MODELS, FILES, WAYS):
                    if files == ON_DISK:
                        _forget(Path(directory))
                    run = _run(way, Path(directory), _model_id(model))
                    runs.setdefault((model, files, way), []).append(run)
            print("every pipeline", file=sys.stderr, flush=True)
            pipelines = {
                pipeline: _run("ours", Path(directory), f"{ORGANISATION}/{recipe.name}", pipeline)
                for pipeline, recipe in RECIPES.items()
            }
    except LivepeerRayError as error:
        print(f"no figures: {error}", file=sys.stderr)
        return EXIT_FAILED
    report = {
        "machine": where,
        "starts": [_median(key, runs[key]) for key in runs],
        "pipelines": pipelines,
    }
    print(_table(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _model_id(name: str) -> str:
    return f"bench/{name.replace(' ', '-').lower()}"


def _write_models(directory: Path) -> None:
    """Writes them in a process of their own, whose memory does not stay."""
    code = "from benchmarks.cold_start import write_models; import sys; write_models(sys.argv[1])"
    written = subprocess.run([sys.executable, "-c", code, directory], check=False)
    if written.returncode:
        raise LivepeerRayError("the models could not be written")


def write_models(directory: str) -> None:
    """Writes the models, in the Hugging Face cache layout."""
    from deployments.loading import quiet_libraries
    from deployments.tiny_models import write_tiny_models
    from deployments.tiny_models.repository import write_repository
    from deployments.tiny_models.stable_diffusion import save_stable_diffusion

    quiet_libraries()
    write_tiny_models(Path(directory))
    for name, encoder in MODELS.items():
        save = partial(save_stable_diffusion, **encoder)
        write_repository(Path(directory), _model_id(name), save)


def _forget(directory: Path) -> None:
    """Takes the files out of the page cache."""
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _run(
    way: str, directory: Path, model_id: str, pipeline: str = "text-to-image"
) -> dict[str, Any]:
    """Starts one process and returns what its start took."""
    code = PLAIN if way == "plain" else OURS
    with tempfile.TemporaryFile("w+") as problems:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", code + AT_ONCE, directory, model_id, pipeline],
            stdout=subprocess.PIPE,
            stderr=problems,
            text=True,
        )
        with process, process.stdout or contextlib.nullcontext() as said:
            line = said.readline() if said else ""
            seconds = time.perf_counter() - began
            # Not by the Popen: only so the kernel tells what this child alone took.
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            problems.seek(0)
            raise LivepeerRayError(f"{way}: {problems.read().strip().splitlines()[-1]}")
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "memory_mib": usage.ru_maxrss / 1024,
        "parts": json.loads(line),
    }


def _median(key: tuple[str, str, str], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    model, files, way = key
    return {
        "model": model,
        "weights": files,
        "way": way,
        "runs": len(runs),
        **{
            name: round(statistics.median(run[name] for run in runs), 2)
            for name in ("seconds", "cpu_seconds", "memory_mib")
        },
        "parts": {
            part: round(statistics.median(run["parts"][part] for run in runs), 2)
            for part in runs[0]["parts"]
        },
    }


def _table(report: Mapping[str, Any]) -> str:
    """The report for people."""
    lines = ["", "MODEL  WEIGHTS            WAY    SECONDS  CPU S  MEMORY MIB"]
    plain: Mapping[str, Any] = {}
    for start in report["starts"]:
        lines.append(
            f"{start['model']:5}  {start['weights']:17}  {start['way']:5}  {start['seconds']:7.1f}"
            f"  {start['cpu_seconds']:5.1f}  {start['memory_mib']:10,.0f}"
        )
        if start["way"] == "plain":
            plain = start
            continue
        times, cpu_times = (plain[name] / start[name] for name in ("seconds", "cpu_seconds"))
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in start["parts"].items())
        lines.append(
            f"       {times:.2f} times as fast, {cpu_times:.2f} by CPU time; ours: {parts}"
        )
    lines += ["", "Ours, each pipeline with its tiny model: seconds, CPU seconds, parts"]
    for pipeline, start in report["pipelines"].items():
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in start["parts"].items())
        took = f"{start['seconds']:6.1f}  {start['cpu_seconds']:6.1f}"
        lines.append(f"  {pipeline:18}  {took}  {parts}")
    return "\n".join([*lines, "", machine.text(report["machine"])])


if __name__ == "__main__":
    sys.exit(main())
