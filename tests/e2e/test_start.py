"""`livepeer-ray start`: deploys, supervises, and leaves nothing behind."""

import os
import signal

import psutil

from cluster.loopback import LoopbackOrchestrator
from tests.e2e.conftest import SECOND, SECRET, TINY, Deployed, Gateway, capacity_is, replica_pids
from tests.e2e.programs import Program, livepeer_ray


def start_flags(orchestrator: LoopbackOrchestrator, deployed: Deployed) -> tuple[str, ...]:
    return (
        *("--orch-addr", f"127.0.0.1:{orchestrator.port}"),
        *("--ray-address", deployed.ray_address),
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
    orchestrator: LoopbackOrchestrator, gateway: Gateway, deployed: Deployed
) -> None:
    flags = start_flags(orchestrator, deployed)
    async with livepeer_ray("start", *flags, secret=SECRET) as start:
        await capacity_is(orchestrator, {TINY: 2, SECOND: 1})
        assert (await gateway.text_to_image())[0] == 200
        replicas = replica_pids(TINY) | replica_pids(SECOND)
        assert len(replicas) == 3

        bridge = bridge_of(start)
        command_lines = [psutil.Process(start.pid).cmdline(), bridge.cmdline()]
        assert SECRET not in repr(command_lines)

        os.kill(bridge.pid, signal.SIGKILL)
        await start.says("the bridge ended with status -9; starting it again")
        await capacity_is(orchestrator, {})
        await capacity_is(orchestrator, {TINY: 2, SECOND: 1})
        assert (await gateway.text_to_image())[0] == 200

        again = bridge_of(start)
        assert again.pid != bridge.pid
        start.signal(signal.SIGTERM)
        assert await start.ends() == 0
        assert replica_pids(TINY) | replica_pids(SECOND) == replicas
        assert not again.is_running()
        assert SECRET not in start.output


async def test_the_bridge_ends_when_its_supervisor_is_killed(
    orchestrator: LoopbackOrchestrator, deployed: Deployed
) -> None:
    flags = start_flags(orchestrator, deployed)
    async with livepeer_ray("start", *flags, secret=SECRET) as start:
        await capacity_is(orchestrator, {TINY: 2, SECOND: 1})
        bridge = bridge_of(start)
        start.signal(signal.SIGKILL)
        await orchestrator.wait_for_workers(lambda workers: not workers)
        assert psutil.wait_procs([bridge], timeout=60)[0] == [bridge]


async def test_deploying_again_leaves_the_replicas_alone(
    orchestrator: LoopbackOrchestrator, deployed: Deployed
) -> None:
    flags = start_flags(orchestrator, deployed)
    async with livepeer_ray("start", *flags, secret=SECRET):
        await capacity_is(orchestrator, {TINY: 2, SECOND: 1})
        replicas = replica_pids(TINY) | replica_pids(SECOND)
    async with livepeer_ray("start", *flags, secret=SECRET):
        await capacity_is(orchestrator, {TINY: 2, SECOND: 1})
        assert replica_pids(TINY) | replica_pids(SECOND) == replicas


async def test_a_wrong_secret_ends_the_supervisor_too(
    orchestrator: LoopbackOrchestrator, deployed: Deployed
) -> None:
    flags = start_flags(orchestrator, deployed)
    async with livepeer_ray("start", *flags, secret="not the secret") as start:
        await start.says("does not accept the secret")
        assert await start.ends() == 3
