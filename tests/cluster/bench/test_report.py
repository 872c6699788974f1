"""From times to the document, the table and the chart."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cluster import machine
from cluster.bench.chart import COLOURS, write_chart
from cluster.bench.driver import Job, Level, percentile
from cluster.bench.report import Variant, document, table
from cluster.bench.workload import Work
from deployments.vitals import Vitals

WORK = Work(units=2, unit="images", scored=4.0, scored_unit="pixel and step")
GIB = 1024**3


def level(concurrency: int, *seconds: float, first_s: float | None = None) -> Level:
    jobs = [Job(seconds=s, first_s=first_s, units=2, scored=4) for s in seconds]
    return Level(concurrency=concurrency, seconds=10.0, jobs=jobs)


def variant(flags: str, *levels: Level, gpu: bool = False) -> Variant:
    vitals = Vitals(
        device="NVIDIA H100" if gpu else "cpu",
        start_up_s={"process": 1.0, "imports": 7.25},
        memory_peak_bytes=GIB,
        gpu_peak_bytes=2 * GIB if gpu else None,
        gpu_used_bytes=3 * GIB if gpu else None,
    )
    return Variant(flags=flags, replicas=1, slots=4, load_s=8.5, vitals=vitals, levels=levels)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    variants = [
        variant("none", level(1, 1.0, 2.0, 3.0), level(4, 4.0)),
        variant("DEEPCACHE", level(1, 0.5, 1.0, 1.5, 1.0), level(4, 2.0), gpu=True),
    ]
    facts = {"machine": machine.describe(), "pipeline": "text-to-image", "model_id": "org/name"}
    return document(variants, work=WORK, facts=facts)


def test_document(report: dict[str, Any]) -> None:
    assert (report["unit"], report["score_unit"]) == ("images", "seconds per pixel and step")
    assert report["machine"]["gpus"] == []
    plain, cached = report["variants"]
    assert plain["levels"][0] == {
        "concurrency": 1,
        "jobs": 3,
        "job_s": {"p50": 2.0, "p95": 2.9},
        "first_s": {"p50": None, "p95": None},
        "jobs_per_s": 0.3,
        "units_per_s": 0.6,
        "score": 0.5,
    }
    assert plain["start_up_s"] == {"process": 1.0, "imports": 7.25}
    assert (plain["gpu_peak_bytes"], cached["gpu_used_bytes"]) == (None, 3 * GIB)


def test_table(report: dict[str, Any]) -> None:
    lines = [line.split() for line in table(report).splitlines()]
    assert ["none", "1", "3", "2.000", "2.900", "0.600", "0.5", "1.00"] in lines
    # Eight images in the time of six.
    assert ["DEEPCACHE", "1", "4", "1.000", "1.425", "0.800", "0.25", "1.33"] in lines
    text = table(report)
    assert "1 x 4 slots on cpu, loaded in 8.5 s (process 1.0, imports 7.2)" in text
    assert "2,048 MiB of GPU memory at most (3,072 MiB of the card in use)" in text
    assert "FIRST" not in text


def test_streams_have_a_column_for_their_first_piece() -> None:
    streamed = variant("none", level(1, 2.0, first_s=0.125))
    facts = {"machine": machine.describe(), "pipeline": "llm", "model_id": "org/name"}
    text = table(document([streamed], work=WORK, facts=facts))
    assert "FIRST P50 S" in text
    assert "0.125" in text


def test_chart_has_a_line_for_each_variant(report: dict[str, Any], tmp_path: Path) -> None:
    write_chart(report, tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as image:
        colours = {colour for _, colour in image.getcolors(1 << 16) or ()}
    assert set(COLOURS[:2]) <= colours
    assert COLOURS[2] not in colours


@pytest.mark.parametrize(("values", "p95"), [([3.0], 3.0), ([1.0, 2.0], 1.95)])
def test_percentiles_of_few(values: list[float], p95: float) -> None:
    assert percentile(values, 95) == pytest.approx(p95)
