"""What continuous batching gains an llm replica: the same requests at once and one by one.

    python -m benchmarks.llm_throughput [--json FILE] [--rounds N]

Two random-weight models of Qwen 3's shape, a tiny one and a mid-sized one, in the real replica
(`deployments.llm`) in this process, without Serve. Neither ever draws the token that ends an
answer, so that every answer has `TOKENS` tokens. For each number of streams, rounds of

- whole answers, all at once: tokens per second, and per second of this process's CPU time, which
  heeds no other load on the machine; both against the same requests one after another;
- streamed answers, all at once: the time to the first text.

Exit status: 1 when 16 at once on the tiny model are not as many times cheaper in CPU time as we
promise, 2 when there are no figures. The mid-sized one keeps a CPU busy with arithmetic, which
batching does not save there; it is told for comparison.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

# Before torch starts its threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from cluster import machine
from cluster.bench.driver import percentile
from deployments.errors import LivepeerRayError
from deployments.llm import LLMReplica
from deployments.loading import quiet_libraries
from deployments.model_args import ModelArgs
from deployments.schemas.llm import LLMRequest
from deployments.tiny_models.language_model import save_language_model
from deployments.tiny_models.repository import write_repository

WANTED_RATIO, AT_STREAMS = 8.0, 16

STREAMS = (1, 16, 64)
ONE_BY_ONE = 4
"""Requests for the rate one after another."""
TOKENS = 32

MID_SIZED = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
"""26 million parameters, 100 MB in the 32 bits that CPUs compute in."""

MODELS = {"tiny": {}, "mid-sized": MID_SIZED}

EXIT_TOO_SLOW, EXIT_FAILED = 1, 2


def main() -> int:
    """Measures, prints, and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.llm_throughput", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--rounds", type=int, default=3, help="of every measurement")
    arguments = parser.parse_args()
    quiet_libraries()
    report: dict[str, Any] = {"machine": machine.describe(), "tokens": TOKENS, "models": {}}
    try:
        with tempfile.TemporaryDirectory(prefix="livepeer-ray-bench-") as directory:
            for name, shape in MODELS.items():
                print(name, file=sys.stderr, flush=True)
                report["models"][name] = _measure_model(
                    Path(directory), f"bench/{name}", shape, rounds=arguments.rounds
                )
    except LivepeerRayError as error:
        print(f"no figures: {error}", file=sys.stderr)
        return EXIT_FAILED
    print(_table(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    ratio = report["models"]["tiny"]["streams"][str(AT_STREAMS)]["times_one_by_one_by_cpu"]
    if ratio < WANTED_RATIO:
        print(f"TOO SLOW: {ratio:.1f} times at {AT_STREAMS}, tiny; wanted {WANTED_RATIO:g}")
        return EXIT_TOO_SLOW
    return 0


def _measure_model(
    models_dir: Path, model_id: str, shape: dict[str, int], *, rounds: int
) -> dict[str, Any]:
    write_repository(models_dir, model_id, partial(_save, shape=shape))
    replica = LLMReplica(args=ModelArgs(pipeline="llm", model_id=model_id, models_dir=models_dir))
    try:
        return asyncio.run(_measure(replica, rounds))
    finally:
        replica.close()


def _save(directory: Path, *, shape: dict[str, int]) -> None:
    """Saves a model that never ends an answer by itself."""
    save_language_model(directory, **shape)
    file = directory / "generation_config.json"
    config = json.loads(file.read_text())
    config["suppress_tokens"].append(config["eos_token_id"])
    file.write_text(json.dumps(config))


async def _measure(replica: LLMReplica, rounds: int) -> dict[str, Any]:
    """Rounds in which every kind has its turn, so that what else the machine does hits all."""
    one_by_one: list[Rate] = []
    at_once: dict[int, list[Rate]] = {streams: [] for streams in STREAMS}
    first: dict[int, list[float]] = {streams: [] for streams in STREAMS}
    await _at_once(replica, STREAMS[-1])
    for _ in range(rounds):
        watch = _Watch()
        for number in range(ONE_BY_ONE):
            await _whole(replica, number)
        one_by_one.append(watch.rate(ONE_BY_ONE))
        for streams in STREAMS:
            at_once[streams].append(await _at_once(replica, streams))
            first[streams] += await asyncio.gather(
                *(_to_first_text(replica, number) for number in range(streams))
            )
    alone = _median(one_by_one)
    figures: dict[str, Any] = {}
    for streams, rates in at_once.items():
        rate = _median(rates)
        figures[str(streams)] = {
            "tokens_per_s": round(rate.per_s, 1),
            "tokens_per_cpu_s": round(rate.per_cpu_s, 1),
            "times_one_by_one": round(rate.per_s / alone.per_s, 2),
            "times_one_by_one_by_cpu": round(rate.per_cpu_s / alone.per_cpu_s, 2),
            "first_text_ms": _milliseconds(first[streams]),
        }
    return {
        "one_by_one_tokens_per_s": round(alone.per_s, 1),
        "one_by_one_tokens_per_cpu_s": round(alone.per_cpu_s, 1),
        "streams": figures,
    }


class Rate(NamedTuple):
    """Tokens per second."""

    per_s: float
    per_cpu_s: float


class _Watch:
    """Measures from its construction on."""

    def __init__(self) -> None:
        self._began_s, self._began_cpu_s = time.perf_counter(), time.process_time()

    def rate(self, answers: int) -> Rate:
        tokens = answers * TOKENS
        return Rate(
            per_s=tokens / (time.perf_counter() - self._began_s),
            per_cpu_s=tokens / (time.process_time() - self._began_cpu_s),
        )


def _median(rates: Sequence[Rate]) -> Rate:
    return Rate(*(statistics.median(column) for column in zip(*rates, strict=True)))


async def _at_once(replica: LLMReplica, streams: int) -> Rate:
    """The rate of so many requests at the same time."""
    watch = _Watch()
    await asyncio.gather(*(_whole(replica, number) for number in range(streams)))
    return watch.rate(streams)


def _request(number: int, *, stream: bool) -> LLMRequest:
    # A number of its own: what the prompts share may be computed once.
    content = f"{number}: what is the capital of France, and what else should I know of it?"
    return LLMRequest.parse(
        {
            "messages": [{"role": "user", "content": content}],
            "max_tokens": TOKENS,
            "stream": stream,
        }
    )


async def _whole(replica: LLMReplica, number: int) -> None:
    completed = await replica.run(_request(number, stream=False))
    if completed.result.usage.completion_tokens != TOKENS:
        raise LivepeerRayError(f"an answer of {completed.result.usage} instead of {TOKENS} tokens")


async def _to_first_text(replica: LLMReplica, number: int) -> float:
    """Seconds to the first text of one streamed answer, which is read to its end."""
    began = time.perf_counter()
    first_s: float | None = None
    async with aclosing(replica.stream(_request(number, stream=True))) as chunks:
        async for chunk in chunks:
            if first_s is None and chunk.text:
                first_s = time.perf_counter() - began
    if first_s is None:
        raise LivepeerRayError("a stream without any text")
    return first_s


def _milliseconds(times_s: list[float]) -> dict[str, float]:
    return {f"p{part}": round(percentile(times_s, part) * 1000, 1) for part in (50, 95)}


def _table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [""]
    for name, figures in report["models"].items():
        alone = figures["one_by_one_tokens_per_s"]
        lines.append(f"{name}, one by one: {alone:,.0f} tokens/s")
        lines += [
            f"  {streams:>3} at once: {at['tokens_per_s']:>8,.0f} tokens/s, "
            f"{at['times_one_by_one']:>5.1f} times, {at['times_one_by_one_by_cpu']:.1f} by CPU "
            f"time; first text p50 "
            f"{at['first_text_ms']['p50']:.0f} ms, p95 {at['first_text_ms']['p95']:.0f} ms"
            for streams, at in figures["streams"].items()
        ]
    return "\n".join([*lines, "", machine.text(report["machine"])])


if __name__ == "__main__":
    sys.exit(main())
