"""What a benchmark found, as a JSON document and as a table."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster import machine
from cluster.bench.driver import Level
from cluster.bench.workload import Work
from deployments.vitals import Vitals

MIB = 1024**2


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A model with certain optimization flags, measured."""

    flags: str
    replicas: int
    slots: int
    """Of each replica."""
    load_s: float | None
    """From the deployment to a running replica; None for one that ran before."""
    vitals: Vitals
    levels: Sequence[Level]


def document(
    variants: Iterable[Variant], *, work: Work, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns one JSON document.

    Args:
        variants: the first is what the others are compared with.
        work: what one request amounts to.
        facts: what else is to stand in it: machine, pipeline, model, request.
    """
    return {
        **facts,
        "unit": work.unit,
        "score_unit": f"seconds per {work.scored_unit}",
        "variants": [_variant(variant) for variant in variants],
    }


def _variant(variant: Variant) -> dict[str, Any]:
    vitals = variant.vitals
    return {
        "flags": variant.flags,
        "replicas": variant.replicas,
        "slots_per_replica": variant.slots,
        "device": vitals.device,
        "load_s": None if variant.load_s is None else round(variant.load_s, 2),
        "start_up_s": {part: round(s, 2) for part, s in vitals.start_up_s.items()},
        "memory_peak_bytes": vitals.memory_peak_bytes,
        "gpu_peak_bytes": vitals.gpu_peak_bytes,
        "gpu_used_bytes": vitals.gpu_used_bytes,
        "levels": [_level(level) for level in variant.levels],
    }


def _level(level: Level) -> dict[str, Any]:
    firsts = {name: level.first_percentile_s(value) for name, value in (("p50", 50), ("p95", 95))}
    return {
        "concurrency": level.concurrency,
        "jobs": len(level.jobs),
        "job_s": {"p50": round(level.percentile_s(50), 4), "p95": round(level.percentile_s(95), 4)},
        "first_s": {name: s and round(s, 4) for name, s in firsts.items()},
        "jobs_per_s": round(len(level.jobs) / level.seconds, 4),
        "units_per_s": round(level.units_per_s, 4),
        "score": float(f"{level.score:.4g}"),
    }


def table(report: Mapping[str, Any]) -> str:
    """Returns the document for people."""
    streamed = any(
        level["first_s"]["p50"] for variant in report["variants"] for level in variant["levels"]
    )
    unit, score_unit = report["unit"], report["score_unit"].removeprefix("seconds per ")
    heading = ["FLAGS", "AT ONCE", "JOBS", "P50 S", "P95 S"]
    heading += ["FIRST P50 S"] if streamed else []
    heading += [f"{unit}/s".upper(), f"S/({score_unit})".upper(), "TIMES"]
    base = {level["concurrency"]: level for level in report["variants"][0]["levels"]}
    rows = [
        heading,
        *(
            _row(variant["flags"], level, base[level["concurrency"]], streamed=streamed)
            for variant in report["variants"]
            for level in variant["levels"]
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    about = [_about(variant) for variant in report["variants"]]
    title = f"{report['pipeline']} {report['model_id']}"
    return "\n".join(["", title, *about, "", *lines, "", machine.text(report["machine"])])


def _row(
    flags: str, level: Mapping[str, Any], base: Mapping[str, Any], *, streamed: bool
) -> list[str]:
    """One line; the last cell is the throughput as a multiple of the first variant's."""
    return [
        flags,
        str(level["concurrency"]),
        str(level["jobs"]),
        f"{level['job_s']['p50']:.3f}",
        f"{level['job_s']['p95']:.3f}",
        *([f"{level['first_s']['p50']:.3f}"] if streamed else []),
        f"{level['units_per_s']:.3f}",
        f"{level['score']:.3g}",
        f"{level['units_per_s'] / base['units_per_s']:.2f}",
    ]


def _about(variant: Mapping[str, Any]) -> str:
    loaded = "ran before" if variant["load_s"] is None else f"loaded in {variant['load_s']:.1f} s"
    parts = ", ".join(f"{part} {s:.1f}" for part, s in variant["start_up_s"].items())
    memory = f"{variant['memory_peak_bytes'] / MIB:,.0f} MiB of memory at most"
    if variant["gpu_peak_bytes"] is not None:
        memory += (
            f", {variant['gpu_peak_bytes'] / MIB:,.0f} MiB of GPU memory at most "
            f"({variant['gpu_used_bytes'] / MIB:,.0f} MiB of the card in use)"
        )
    return (
        f"{variant['flags']}: {variant['replicas']} x {variant['slots_per_replica']} slots on "
        f"{variant['device']}, {loaded} ({parts}), {memory}"
    )
