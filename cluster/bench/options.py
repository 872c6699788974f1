"""The flags of `livepeer-ray bench`, read once."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError
from cluster.settings import add_device_flag, add_models_dir_flag, add_ray_address_flag

NO_FLAGS = "none"
FLAGS = (NO_FLAGS, "SFAST", "DEEPCACHE")

MAX_CONCURRENCY = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What to measure."""

    pipeline: str
    model_id: str
    runs: int
    """Requests at each concurrency, or as many as that is."""
    concurrency: Sequence[int]
    batch: int
    """Images that a request asks for."""
    flags: Sequence[str]
    """Some of `FLAGS`; none where the model is to be measured as it is deployed."""
    parameters: Mapping[str, Any]
    """Of the request, in place of the defaults."""
    ray_options: Mapping[str, Any]
    """As the `ray` object of an aiModels.json entry."""
    file: Path | None
    """Image or sound, in place of a made one."""
    json_file: Path | None
    chart_file: Path | None


def add_bench_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what `bench_options` reads, and where the models and the cluster are."""
    parser.add_argument("--pipeline", required=True, help="such as text-to-image")
    parser.add_argument("--model-id", required=True, help="such as SG161222/RealVisXL_V4.0")
    parser.add_argument(
        "--runs",
        type=int,
        default=10,
        help="requests at each concurrency, or as many as that is (default: 10)",
    )
    parser.add_argument(
        "--concurrency", default="1", help="requests at a time, such as 1,4,16 (default: 1)"
    )
    parser.add_argument(
        "--batch", type=int, default=1, help="images a request asks for (default: 1)"
    )
    parser.add_argument(
        "--flags",
        default="",
        help=f"optimization flags to compare, such as {','.join(FLAGS)} (default: {NO_FLAGS})",
    )
    parser.add_argument(
        "--request",
        default="{}",
        metavar="JSON",
        help="parameters in place of the defaults, such as '{\"num_inference_steps\": 4}'",
    )
    parser.add_argument(
        "--ray",
        default="{}",
        metavar="JSON",
        help="as in aiModels.json, such as '{\"max_ongoing_requests\": 32}'",
    )
    parser.add_argument(
        "--input", type=Path, metavar="FILE", help="image or sound to send, instead of a made one"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw them here, as PNG")
    add_models_dir_flag(parser)
    add_device_flag(parser)
    add_ray_address_flag(parser, may_start=True)


def bench_options(arguments: argparse.Namespace) -> BenchOptions:
    """Reads what `add_bench_flags` added.

    Raises:
        ConfigError: a flag makes no sense; the text names it.
    """
    flags = tuple(filter(None, arguments.flags.split(",")))
    if unknown := [flag for flag in flags if flag not in FLAGS]:
        raise ConfigError(f"--flags: want some of {', '.join(FLAGS)}, got {unknown[0]!r}")
    for flag, value in (("--runs", arguments.runs), ("--batch", arguments.batch)):
        if value < 1:
            raise ConfigError(f"{flag}: want at least 1, got {value}")
    for flag, file in (("--json", arguments.json), ("--chart", arguments.chart)):
        # Before the minutes that the figures take.
        if file and not file.parent.is_dir():
            raise ConfigError(f"{flag}: {file.parent} is no directory")
    return BenchOptions(
        pipeline=arguments.pipeline,
        model_id=arguments.model_id,
        runs=arguments.runs,
        concurrency=_levels(arguments.concurrency),
        batch=arguments.batch,
        flags=tuple(dict.fromkeys(flags)),
        parameters=_object("--request", arguments.request),
        ray_options=_object("--ray", arguments.ray),
        file=arguments.input,
        json_file=arguments.json,
        chart_file=arguments.chart,
    )


def _levels(value: str) -> tuple[int, ...]:
    try:
        levels = tuple(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError:
        levels = ()
    if not levels or not all(1 <= level <= MAX_CONCURRENCY for level in levels):
        raise ConfigError(
            f"--concurrency: want numbers from 1 to {MAX_CONCURRENCY}, such as 1,4,16, "
            f"got {value!r}"
        )
    return levels


def _object(flag: str, value: str) -> dict[str, Any]:
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise ConfigError(f"{flag}: not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise ConfigError(f"{flag}: want a JSON object, got {value}")
    return parsed
