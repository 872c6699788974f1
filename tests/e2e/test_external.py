"""A cluster in front of a cluster: our own HTTP API as the external containers of a bridge.

Both are the same Ray cluster here, so every job passes through it twice at most, and never
without the HTTP API in between.
"""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deployments.registry import PIPELINES
from tests.e2e.conftest import PIPELINE, SECOND, SECRET, TINY, Deployed, Orchestrator
from tests.e2e.programs import PATIENCE_S, livepeer_ray
from tests.e2e.test_pipelines import CHECKS, REQUESTS, Answers, body_of
from tests.free_ports import free_port


def entries(deployed: Deployed) -> list[dict[str, Any]]:
    """Every working model of the cluster at its own url; one of them on Ray as well."""
    models = [
        entry
        for entry in json.loads(deployed.ai_models.read_text())
        if entry["pipeline"] != PIPELINE or entry["model_id"] in (TINY, SECOND)
    ]
    external = [
        {**entry, "capacity": 3, "url": f"{deployed.http}/{entry['pipeline']}/{entry['model_id']}/"}
        for entry in models
    ]
    return external + [entry for entry in models if entry["model_id"] == TINY]


def jobs_in(lines: Sequence[str]) -> list[dict[str, Any]]:
    """The records of jobs in a log. Ray prints lines of its own."""
    logged = [json.loads(line).get("job") for line in lines if line.startswith("{")]
    return [job for job in logged if job]


async def test_all_pipelines(
    orchestrator: Orchestrator, deployed: Deployed, tmp_path: Path
) -> None:
    ai_models, port = tmp_path / "aiModels.json", free_port()
    ai_models.write_text(json.dumps(entries(deployed)))
    flags = (
        *("--orch-addr", orchestrator.address),
        *("--ray-address", deployed.ray.address),
        *("--ai-models", str(ai_models)),
        *("--state-listen", f"127.0.0.1:{port}"),
        "--log-json",
    )
    answers = Answers(orchestrator.http)
    async with livepeer_ray("bridge", *flags, secret=SECRET) as bridge:
        await orchestrator.serves(set(PIPELINES))
        # On Ray two replicas, and three jobs at a time at the url.
        await orchestrator.advertises({TINY: 5, SECOND: 3})
        for pipeline in PIPELINES:
            async with orchestrator.http.post(f"/{pipeline}", **body_of(pipeline)) as response:
                answer = await response.json()
                assert response.status == 200, (pipeline, answer)
            await CHECKS[pipeline](answers, answer)

        request = {**REQUESTS["llm"]["json"], "stream": True}
        async with orchestrator.http.post("/llm", json=request) as response:
            lines = [line async for line in response.content if line.startswith(b"data: ")]
        choices = [json.loads(line[6:])["choices"][0] for line in lines]
        assert len(choices) > 1, "token by token"
        assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] in (
            ["stop"],
            ["length"],
        )

        # What has been answered is logged a moment later.
        async with asyncio.timeout(PATIENCE_S):
            while len(jobs := jobs_in(bridge.lines)) < len(PIPELINES) + 1:
                await asyncio.sleep(0.05)
        assert len(jobs) == len(PIPELINES) + 1
        for job in jobs:
            assert job["outcome"] == "ok"
            assert job["replica"] == f"{deployed.http}/{job['pipeline']}/{job['model_id']}"

        async with orchestrator.http.get(f"http://127.0.0.1:{port}/state") as response:
            containers = (await response.json())["containers"]
        assert len(containers) == len(PIPELINES) + 1
        assert {(container["slots"], container["detail"]) for container in containers} == {(3, "")}

        # The url leaves the file: what is left of that model is on Ray.
        left = [
            entry for entry in entries(deployed) if entry["model_id"] != TINY or "url" not in entry
        ]
        ai_models.write_text(json.dumps(left))
        await orchestrator.advertises({TINY: 2, SECOND: 3})
        async with orchestrator.http.post("/text-to-image", **body_of(PIPELINE)) as response:
            assert response.status == 200
