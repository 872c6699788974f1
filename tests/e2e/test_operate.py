"""A worker under its operator's hands: a changed file, `apply`, `status`, `models download`."""

import asyncio
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from cluster.ai_models import ModelKey
from cluster.serve_config import app_name
from deployments.loading import find_snapshot
from tests.e2e.conftest import (
    MISSING,
    PIPELINE,
    SECOND,
    SECRET,
    TINY,
    Deployed,
    Gateway,
    Orchestrator,
    RayCluster,
)
from tests.e2e.programs import PATIENCE_S, Program, livepeer_ray, program
from tests.free_ports import free_port
from tests.hub import running_hub

THIRD = "livepeer-ray/tiny-sd-third"


def entry(model_id: str, **fields: object) -> dict[str, Any]:
    return {"pipeline": PIPELINE, "model_id": model_id, "warm": True, **fields}


def child(start: Program, name: str) -> psutil.Process:
    (found,) = (child for child in psutil.Process(start.pid).children() if name in child.cmdline())
    return found


def cluster_flags(deployed: Deployed, file: Path) -> tuple[str, ...]:
    return (
        *("--ray-address", deployed.ray.address),
        *("--ai-models", str(file)),
        *("--ai-models-dir", str(deployed.models_dir)),
        *("--device", "cpu"),
    )


async def status_of(deployed: Deployed, bridge: str) -> dict[str, Any]:
    flags = ("--ray-address", deployed.ray.address, "--state-listen", bridge, "--json")
    async with livepeer_ray("status", *flags) as status:
        assert await status.ends() == 0, status.output
    document: dict[str, Any] = json.loads(
        "".join(line for line in status.lines if line[:1] in " {}")
    )
    return document


def of(model_id: str, status: dict[str, Any]) -> dict[str, Any]:
    (model,) = (model for model in status["models"] if model["model_id"] == model_id)
    return dict(model)


async def serves(deployed: Deployed, model_id: str) -> bool:
    models = (await status_of(deployed, "none"))["models"]
    return any(model["model_id"] == model_id and model["running"] for model in models)


async def has_health(deployed: Deployed, model_id: str, health: str) -> None:
    """Waits until the HTTP API tells this of a model; nothing where it does not serve it."""
    async with aiohttp.ClientSession(deployed.http) as http, asyncio.timeout(PATIENCE_S):
        while True:
            async with http.get(f"/{PIPELINE}/{model_id}/health") as response:
                told = await response.read()
            if told.startswith(b"{") and json.loads(told).get("status", "") == health:
                return
            await asyncio.sleep(0.2)


async def test_a_changed_file_is_served_and_the_models_that_stay_are_left_alone(
    orchestrator: Orchestrator, gateway: Gateway, deployed: Deployed, tmp_path: Path
) -> None:
    entries = json.loads(deployed.ai_models.read_text())
    file = tmp_path / "aiModels.json"
    file.write_text(json.dumps(entries))
    third = deployed.models_dir / f"models--{THIRD.replace('/', '--')}"
    bridge_at = f"127.0.0.1:{free_port()}"
    flags = (
        *cluster_flags(deployed, file),
        *("--orch-addr", orchestrator.address),
        *("--state-listen", bridge_at),
    )
    async with livepeer_ray("start", *flags, secret=SECRET) as start:
        await orchestrator.advertises({TINY: 2, SECOND: 1})
        replicas = deployed.ray.replicas(TINY) | deployed.ray.replicas(SECOND)
        ingress = deployed.ray.ingress()
        await has_health(deployed, THIRD, "")
        bridge = child(start, "bridge")

        # What is invalid changes nothing, not even by way of a process that starts anew.
        file.write_text('[{"pipeline": "nope"')
        await start.says("not JSON")
        await start.says("nothing is changed")
        os.kill(child(start, "cluster.deployer").pid, signal.SIGKILL)
        await start.says("the deployer ended with status -9; starting it again")

        # A new model, whose files are not there; then they are, and somebody says so.
        file.write_text(json.dumps([*entries, entry(THIRD)]))
        await start.says(f"{THIRD}: DEPLOY_FAILED")
        third.symlink_to(deployed.models_dir / f"models--{TINY.replace('/', '--')}")
        start.signal(signal.SIGHUP)
        await orchestrator.advertises({TINY: 2, SECOND: 1, THIRD: 1})
        await has_health(deployed, THIRD, "OK")

        asked = asyncio.create_task(
            gateway.text_to_image(model_id=THIRD, num_inference_steps=150, width=512)
        )
        await orchestrator.has_a_job_out()
        status = await status_of(deployed, bridge_at)
        assert {
            "warm": True,
            "wanted": 1,
            "running": 1,
            "slots": 1,
            "in_flight": 1,
            "advertised": 1,
            "state": "RUNNING",
        }.items() <= of(THIRD, status).items()
        assert of(MISSING, status)["advertised"] == 0
        assert "hf download" in of(MISSING, status)["message"]
        (registration,) = status["orchestrators"]
        assert registration["orchestrator"] == f"https://{orchestrator.address}"
        assert registration["registered"]
        (node,) = status["nodes"]
        held = [replica["model_id"] for replica in node["replicas"]]
        assert (held.count(TINY), held.count(THIRD)) == (2, 1)

        # A model that leaves is first no longer advertised; its job finishes all the same.
        replacement = file.with_suffix(".new")
        replacement.write_text(json.dumps(entries))
        replacement.replace(file)
        await orchestrator.advertises({TINY: 2, SECOND: 1})
        assert deployed.ray.replicas(THIRD)
        assert (await asked)[0] == 200
        async with asyncio.timeout(PATIENCE_S):
            while deployed.ray.replicas(THIRD):
                await asyncio.sleep(0.2)

        assert deployed.ray.replicas(TINY) | deployed.ray.replicas(SECOND) == replicas
        assert child(start, "bridge").pid == bridge.pid
        await has_health(deployed, THIRD, "")
        assert deployed.ray.ingress() == ingress


async def test_a_bridge_alone_follows_its_file(
    orchestrator: Orchestrator, deployed: Deployed, tmp_path: Path
) -> None:
    file = tmp_path / "aiModels.json"
    file.write_text(json.dumps([entry(TINY)]))
    flags = (
        *("--orch-addr", orchestrator.address),
        *("--ray-address", deployed.ray.address),
        *("--ai-models", str(file)),
        *("--state-listen", "none"),
    )
    async with livepeer_ray("bridge", *flags, secret=SECRET) as bridge:
        await orchestrator.advertises({TINY: 2})
        file.write_text("[]")
        bridge.signal(signal.SIGHUP)
        await bridge.says("the list is empty")
        file.write_text(json.dumps([entry(TINY), entry(SECOND)]))
        await orchestrator.advertises({TINY: 2, SECOND: 1})
        file.write_text(json.dumps([entry(SECOND)]))
        await orchestrator.advertises({SECOND: 1})


async def test_apply(deployed: Deployed, tmp_path: Path) -> None:
    entries = json.loads(deployed.ai_models.read_text())
    changed = [
        {**one, "ray": {"max_ongoing_requests": 2}} if one["model_id"] == SECOND else one
        for one in entries
    ]
    file = tmp_path / "aiModels.json"
    async with asyncio.timeout(PATIENCE_S):
        while not await serves(deployed, SECOND):
            await asyncio.sleep(1.0)
    replicas = deployed.ray.replicas(TINY) | deployed.ray.replicas(SECOND)
    for content, slots in ((changed, 2), (entries, 1)):
        file.write_text(json.dumps(content))
        async with livepeer_ray("apply", *cluster_flags(deployed, file)) as apply:
            assert await apply.ends() == 0, apply.output
        status = await status_of(deployed, "none")
        assert of(SECOND, status)["slots"] == slots
        assert of(SECOND, status)["in_flight"] is None
        assert status["orchestrators"] is None
    second = app_name(ModelKey(PIPELINE, SECOND))
    assert f"deploying {second}, which has changed" in apply.output
    tiny = app_name(ModelKey(PIPELINE, TINY))
    assert not re.search(rf"{tiny}(,|$)", apply.output, re.MULTILINE)
    assert deployed.ray.replicas(TINY) | deployed.ray.replicas(SECOND) == replicas


async def test_models_are_fetched_on_every_node(deployed: Deployed, tmp_path: Path) -> None:
    with running_hub() as hub:
        hub.add("org/chat", {"config.json": b"{}", "model.safetensors": b"weights"})
        flags = (
            *("--ai-models", "llm:org/chat:true,llm:org/none:true"),
            *("--ai-models-dir", str(tmp_path / "models")),
            *("--ray-address", deployed.ray.address),
        )
        async with program(
            *("livepeer-ray", "models", "download", "--all-nodes"),
            *flags,
            environment={"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_secret"},
        ) as download:
            assert await download.ends() == 1
            await download.says(r"^[\d.]+: org/chat: 2 files")
            await download.says(
                f"^[\\d.]+: org/none: missing in .*: there is no {hub.url}/org/none"
            )
        assert hub.tokens == {"hf_secret"}
        assert "hf_secret" not in download.output
    assert find_snapshot("org/chat", tmp_path / "models")


async def test_bad_input_to_apply_and_status(tmp_path: Path) -> None:
    file = tmp_path / "aiModels.json"
    file.write_text("[]")
    async with livepeer_ray("apply", "--ai-models", str(file)) as apply:
        assert await apply.ends() == 2
        await apply.says("the list is empty")
    async with livepeer_ray("status", "--ray-address", "127.0.0.1:1") as status:
        assert await status.ends() == 4
        await status.says("no Ray cluster at '127.0.0.1:1'")


async def test_a_cluster_with_another_token_is_no_missing_one(ray: RayCluster) -> None:
    environment = {
        "RAY_AUTH_TOKEN": "a" * 64,
        "RAY_AUTH_MODE": "token",
        # Of one second each; by default 20.
        "RAY_NUM_REDIS_GET_RETRIES": "1",
    }
    flags = ("--ray-address", ray.address)
    async with program("livepeer-ray", "status", *flags, environment=environment) as status:
        await status.says(r"does not let us in.*~/\.ray/auth_token")
        assert await status.ends() == 4
