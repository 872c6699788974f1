"""What computing waiting requests as one saves: calls of the model, and time.

`python -m benchmarks.batching [--json FILE]`: requests for images that agree, first one after
another, then all at the same time, on one replica in this process. The model is the tiny Stable
Diffusion with random weights. One of full size keeps a CPU busy with one image and gains little.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cluster import machine
from deployments.model_args import ModelArgs
from deployments.schemas.text_to_image import TextToImageRequest
from deployments.text_to_image import TextToImageReplica
from deployments.tiny_models import write_tiny_models

REQUESTS = 4
ROUNDS = 3
STEPS = 20
MODEL = "livepeer-ray/tiny-sd"
SIDE = 128
"""Pixels."""


class Calls:
    """Counts the calls of a model."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.count = 0
        model.register_forward_hook(self._called)

    def _called(self, *_: Any) -> None:
        self.count += 1


async def _one_after_another(replica: TextToImageReplica, asked: Sequence[Any]) -> None:
    for request in asked:
        await replica.run(request)


async def _together(replica: TextToImageReplica, asked: Sequence[Any]) -> None:
    await asyncio.gather(*(replica.run(request) for request in asked))


def measure(models_dir: Path) -> dict[str, Any]:
    """Returns the report as JSON."""
    where = machine.describe()
    replica = TextToImageReplica(
        args=ModelArgs(pipeline="text-to-image", model_id=MODEL, models_dir=models_dir)
    )
    calls = Calls(replica._pipe.unet)
    asked = [
        TextToImageRequest(
            prompt=f"a lighthouse, {seed}",
            seed=seed,
            width=SIDE,
            height=SIDE,
            num_inference_steps=STEPS,
        )
        for seed in range(REQUESTS)
    ]
    ways: dict[str, Any] = {
        "one after another": _one_after_another,
        "together": _together,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    counted: dict[str, list[int]] = {name: [] for name in ways}
    for _round in range(ROUNDS):
        for name, way in ways.items():
            before, began = calls.count, time.perf_counter()
            asyncio.run(way(replica, asked))
            seconds[name].append(time.perf_counter() - began)
            counted[name].append(calls.count - before)
    replica.close()
    (apart_s, apart), (together_s, together) = (
        (statistics.median(seconds[name]), statistics.median(counted[name])) for name in ways
    )
    return {
        "machine": where,
        "threads": torch.get_num_threads(),
        "requests": REQUESTS,
        "one_after_another": {"median_s": round(apart_s, 3), "model_calls": apart},
        "together": {"median_s": round(together_s, 3), "model_calls": together},
        "ratio": {
            "time": round(apart_s / together_s, 2),
            "model_calls": round(apart / together, 2),
        },
    }


def main() -> int:
    """Runs the benchmark and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        write_tiny_models(Path(directory), ["text-to-image"])
        report = measure(Path(directory))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2))
    print(f"{REQUESTS} requests of {SIDE}x{SIDE}, {STEPS} steps")
    for name in ("one_after_another", "together"):
        way = report[name]
        print(f"  {name:>18}: {way['median_s']:6.2f} s, {way['model_calls']} calls of the model")
    print(f"  ratio: time {report['ratio']['time']}, calls {report['ratio']['model_calls']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
