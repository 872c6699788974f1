"""The other door over the whole path: every pipeline as a live runner, and both doors at once."""

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

from cluster.demo.gateway import send
from cluster.demo.inputs import picture, sound
from cluster.demo.samples import EVERY_PIPELINE, INPUT_FILES
from deployments.registry import PIPELINES
from tests.e2e.conftest import PIPELINE, SECRET, TINY, Deployed, Orchestrator
from tests.e2e.programs import PATIENCE_S, livepeer_ray
from tests.free_ports import free_port


async def bases(orchestrator: Orchestrator) -> dict[str, str]:
    """Where clients find each pipeline, by the orchestrator's own word."""
    async with orchestrator.http.get("/discovery") as response:
        (known,) = await response.json()
    return {
        runner["app"].partition("/")[0]: urlsplit(runner["url"]).path
        for runner in known.get("runners", [])
        if not runner["app"].startswith(PIPELINE) or runner["app"] == f"{PIPELINE}/{TINY}"
    }


async def test_every_pipeline_is_a_live_runner_beside_the_worker(
    orchestrator: Orchestrator, deployed: Deployed, tmp_path: Path
) -> None:
    (tmp_path / INPUT_FILES["image"]).write_bytes(picture())
    (tmp_path / INPUT_FILES["audio"]).write_bytes(sound())
    flags = (
        *("--orch-addr", orchestrator.address),
        *("--ray-address", deployed.ray.address),
        *("--ai-models", str(deployed.ai_models)),
        *("--register", "both"),
        *("--runner-listen", f"127.0.0.1:{free_port()}"),
    )
    async with livepeer_ray("bridge", *flags, secret=SECRET):
        await orchestrator.serves({sample.pipeline for sample in EVERY_PIPELINE})
        async with asyncio.timeout(PATIENCE_S):
            while (known := await bases(orchestrator)).keys() != PIPELINES.keys():
                await asyncio.sleep(0.1)
        for sample in EVERY_PIPELINE:
            output = await send(orchestrator.http, sample, tmp_path, base=known[sample.pipeline])
            assert not output.error, sample
            assert output.size
    # It has said farewell to the orchestrator before it ended.
    assert await bases(orchestrator) == {}
