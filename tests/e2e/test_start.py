"""`livepeer-ray start`: deploys, supervises, and leaves nothing behind."""

import asyncio
import json
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import psutil

from tests.e2e.conftest import (
    SECOND,
    SECRET,
    TINY,
    Deployed,
    Gateway,
    Orchestrator,
    running_ray,
)
from tests.e2e.programs import Program, livepeer_ray


def start_flags(orchestrator: Orchestrator, deployed: Deployed) -> tuple[str, ...]:
    return (
        *("--orch-addr", orchestrator.address),
        *("--ray-address", deployed.ray.address),
        *("--ai-models", str(deployed.ai_models)),
        *("--ai-models-dir", str(deployed.models_dir)),
        *("--device", "cpu"),
    )


def bridge_of(start: Program) -> psutil.Process:
    (bridge,) = (
        child for child in psutil.Process(start.pid).children() if "bridge" in child.cmdline()
    )
    return bridge


async def test_the_bridge_is_restarted_and_the_models_are_left_alone(
    orchestrator: Orchestrator, gateway: Gateway, deployed: Deployed
) -> None:
    flags = start_flags(orchestrator, deployed)
    async with livepeer_ray("start", *flags, secret=SECRET) as start:
        await orchestrator.advertises({TINY: 2, SECOND: 1})
        assert (await gateway.text_to_image())[0] == 200
        replicas = deployed.ray.replicas(TINY) | deployed.ray.replicas(SECOND)
        assert len(replicas) == 3

        bridge = bridge_of(start)
        command_lines = [psutil.Process(start.pid).cmdline(), bridge.cmdline()]
        assert SECRET not in repr(command_lines)

        asked = asyncio.create_task(gateway.text_to_image(num_inference_steps=200, width=512))
        await orchestrator.has_a_job_out()
        os.kill(bridge.pid, signal.SIGKILL)
        await start.says("the bridge ended with status -9; starting it again")
        await orchestrator.advertises({})
        status, document = await asked
        assert status == 503
        assert "insufficient capacity: this worker was restarted" in json.dumps(document)
        await orchestrator.advertises({TINY: 2, SECOND: 1})
        assert (await gateway.text_to_image())[0] == 200

        again = bridge_of(start)
        assert again.pid != bridge.pid
        start.signal(signal.SIGTERM)
        assert await start.ends() == 0
        assert deployed.ray.replicas(TINY) | deployed.ray.replicas(SECOND) == replicas
        assert not again.is_running()
        assert SECRET not in start.output


async def test_both_children_end_when_their_supervisor_is_killed(
    orchestrator: Orchestrator, deployed: Deployed
) -> None:
    flags = start_flags(orchestrator, deployed)
    async with livepeer_ray("start", *flags, secret=SECRET) as start:
        await orchestrator.advertises({TINY: 2, SECOND: 1})
        children = psutil.Process(start.pid).children()
        assert len(children) == 2
        start.signal(signal.SIGKILL)
        await orchestrator.has_no_worker()
        assert psutil.wait_procs(children, timeout=60)[1] == []


async def test_the_supervisor_outlasts_its_cluster(
    orchestrator: Orchestrator, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        with running_ray() as ray:
            flags = (
                *("--orch-addr", orchestrator.address),
                *("--ray-address", ray.address),
                *("--ai-models", "text-to-image:org/never-downloaded:true"),
                *("--ai-models-dir", str(tmp_path)),
            )
            start = await stack.enter_async_context(livepeer_ray("start", *flags, secret=SECRET))
            await start.says("capacity: nothing")
        os.kill(bridge_of(start).pid, signal.SIGKILL)
        await start.says("no Ray cluster at")
        await start.says("the bridge ended with status 4; starting it again")


async def test_deploying_again_leaves_the_replicas_alone(
    orchestrator: Orchestrator, deployed: Deployed
) -> None:
    flags = start_flags(orchestrator, deployed)
    async with livepeer_ray("start", *flags, secret=SECRET):
        await orchestrator.advertises({TINY: 2, SECOND: 1})
        replicas = deployed.ray.replicas(TINY) | deployed.ray.replicas(SECOND)
    async with livepeer_ray("start", *flags, secret=SECRET):
        await orchestrator.advertises({TINY: 2, SECOND: 1})
        assert deployed.ray.replicas(TINY) | deployed.ray.replicas(SECOND) == replicas


async def test_a_wrong_secret_ends_the_supervisor_too(
    orchestrator: Orchestrator, deployed: Deployed
) -> None:
    flags = start_flags(orchestrator, deployed)
    async with livepeer_ray("start", *flags, secret="not the secret") as start:
        await start.says("does not accept the secret")
        assert await start.ends() == 3
