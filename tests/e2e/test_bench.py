"""`livepeer-ray bench` on a cluster that serves models: they are used, and left as they are."""

import json
from pathlib import Path

from PIL import Image

from cluster.settings import EXIT_CONFIG
from tests.e2e.conftest import TINY, Deployed
from tests.e2e.programs import livepeer_ray


def bench(deployed: Deployed, *flags: str, pipeline: str = "text-to-image") -> tuple[str, ...]:
    return ("bench", "--pipeline", pipeline, "--ray-address", deployed.ray.address, *flags)


async def test_a_model_that_is_served_is_measured_as_it_is(
    deployed: Deployed, tmp_path: Path
) -> None:
    report, chart = tmp_path / "bench.json", tmp_path / "bench.png"
    small = json.dumps({"width": 64, "height": 64, "num_inference_steps": 2})
    before = deployed.ray.replicas(TINY)
    async with livepeer_ray(
        *bench(deployed, "--model-id", TINY, "--runs", "3", "--concurrency", "1,4"),
        *("--request", small, "--batch", "2", "--json", str(report), "--chart", str(chart)),
    ) as process:
        assert await process.ends() == 0, process.output
    found = json.loads(report.read_text())
    (variant,) = found["variants"]
    assert (variant["flags"], variant["load_s"]) == ("as deployed", None)
    assert (variant["device"], variant["gpu_peak_bytes"]) == ("cpu", None)
    assert variant["start_up_s"]["imports"] > 0
    assert [(level["concurrency"], level["jobs"]) for level in variant["levels"]] == [
        (1, 3),
        (4, 4),
    ]
    for level in variant["levels"]:
        # Two images a request, which has the pixels and steps of both.
        assert level["units_per_s"] > level["jobs_per_s"]
        assert level["score"] * 64 * 64 * 2 * 2 <= level["job_s"]["p95"]
    assert "IMAGES/S" in process.output
    with Image.open(chart) as image:
        assert image.format == "PNG"
    assert before <= deployed.ray.replicas(TINY)


async def test_an_llm_streams_at_once(deployed: Deployed, tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    flags = ("--model-id", "livepeer-ray/tiny-qwen3", "--concurrency", "4", "--runs", "4")
    async with livepeer_ray(
        *bench(deployed, *flags, pipeline="llm"),
        *("--request", '{"max_tokens": 1}', "--json", str(report)),
    ) as process:
        assert await process.ends() == 0, process.output
    (variant,) = json.loads(report.read_text())["variants"]
    assert variant["slots_per_replica"] == 8
    (level,) = variant["levels"]
    assert 0 < level["first_s"]["p50"] <= level["job_s"]["p50"]
    # An answer of one token; its prompt, which the score counts too, has many more.
    assert level["units_per_s"] == level["jobs_per_s"]
    assert level["score"] < level["job_s"]["p95"] / 10
    assert "TOKENS/S" in process.output


async def test_a_cluster_is_not_changed(deployed: Deployed) -> None:
    for flags, message in (
        (("--model-id", "org/other"), "this cluster serves "),
        (("--model-id", TINY, "--flags", "SFAST"), "this cluster serves the model already"),
    ):
        async with livepeer_ray(*bench(deployed, *flags)) as process:
            assert await process.ends() == EXIT_CONFIG
        assert message in process.output
