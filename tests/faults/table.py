"""The faults: one entry each. A fault is something that is done to the world under load.

What is expected of every one: no job is lost, none is answered twice, the worker did nothing
that an orchestrator would mind, and all is well again afterwards. An entry says where more is to
be put up with, which doors of the bridge the fault can strike, and the line of the bridge's log
that proves that it took place.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import psutil

from cluster.loopback.misbehaviour import Wrong
from tests.faults.doors import Door
from tests.faults.model import AT_WORK, JOB_S
from tests.faults.network import Namespace
from tests.faults.world import World

Cause = Callable[[World], Awaitable[object]]
"""Does it, and undoes what would not end by itself."""

HOUR_S = 3600

LOOKS = 1000
"""For a replica at work, of which there are some all the time."""


def nothing(_: World) -> str:
    """Every machine has what this fault needs."""
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One entry."""

    name: str
    cause: Cause
    proofs: Mapping[Door, str]
    """By door that it can strike: a pattern that the bridge's log must show; empty where the
    bridge does not notice."""
    errors: bool = False
    """Jobs may be answered with an error: who had them is gone, or nobody could serve them."""
    severed: bool = False
    """What is on its way is lost. Jobs that were sent never come. Replies to answers do not come
    either, so that the answers are sent again; an orchestrator that has them ignores that."""
    short: bool = False
    """Part of `make test`, for nothing has to be waited for."""
    lacks: Callable[[World], str] = nothing
    """Why it cannot be done here; empty where it can."""


def either_door(proof: str) -> Mapping[Door, str]:
    """The bridge says the same, whichever door it uses."""
    return dict.fromkeys(Door, proof)


def kill(victim: Callable[[World], int]) -> Cause:
    """SIGKILL."""

    async def cause(world: World) -> None:
        os.kill(victim(world), signal.SIGKILL)

    return cause


def freeze(victim: Callable[[World], int], *, for_s: float) -> Cause:
    """SIGSTOP, and SIGCONT if it still lives afterwards."""

    async def cause(world: World) -> None:
        pid = victim(world)
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(for_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    return cause


def misbehave(how: Wrong, *, for_s: float) -> Cause:
    """The orchestrator does wrong for a while."""

    async def cause(world: World) -> None:
        await world.misbehave(how)
        try:
            await asyncio.sleep(for_s)
        finally:
            await world.misbehave(Wrong.NOTHING)

    return cause


async def freeze_replica(world: World) -> psutil.Process:
    """SIGSTOP for good, in the middle of a job: Serve has to replace it."""
    for _ in range(LOOKS):
        for pid in world.replicas():
            with contextlib.suppress(psutil.NoSuchProcess):
                replica = psutil.Process(pid)
                # Before the look: a job that is seen could end before it is stopped.
                replica.suspend()
                if any(file.path == AT_WORK for file in replica.open_files()):
                    return replica
                replica.resume()
        await asyncio.sleep(JOB_S / 10)
    raise AssertionError("no replica has a job")


async def kill_replica(world: World) -> None:
    """SIGKILL, in the middle of a job."""
    (await freeze_replica(world)).kill()


async def kill_node(world: World) -> None:
    """SIGKILL of a node's raylet; another node joins later."""
    await kill(World.raylet)(world)
    await asyncio.sleep(10)
    await world.add_node()


async def restart_orchestrator(world: World) -> None:
    """Another process at the same address."""
    await world.restart_orchestrator()


async def cut_network(world: World) -> None:
    """Connections end and are refused for 30 s."""
    for wire in world.wires:
        await wire.kill()
    await asyncio.sleep(30)
    for wire in world.wires:
        await wire.start()


async def blackhole(world: World) -> None:
    """Packets vanish for 45 s."""
    assert isinstance(world.namespace, Namespace)
    world.namespace.blackhole(on=True)
    await asyncio.sleep(45)
    world.namespace.blackhole(on=False)


def no_namespace(world: World) -> str:
    """Why there is none."""
    return world.namespace if isinstance(world.namespace, str) else ""


async def fill_disk(world: World) -> None:
    """The journal cannot be written for a while."""
    world.disk.fill()
    # A disk is full by the page: what is left of the journal's last one takes 4 s to fill.
    await asyncio.sleep(5)
    world.disk.free()


def set_clock(seconds: int, *, then: Cause | None = None) -> Cause:
    """The bridge's wall clock jumps, and back again."""

    async def cause(world: World) -> None:
        world.clock.set_off_by(seconds)
        if then:
            await then(world)
        await asyncio.sleep(5)
        world.clock.set_off_by(0)

    return cause


FAULTS = (
    Fault(
        name="a replica is killed",
        cause=kill_replica,
        proofs=either_door("died while it ran the job; running it again"),
        short=True,
    ),
    Fault(
        name="a replica is frozen",
        cause=freeze_replica,
        proofs=either_door("running it again"),
    ),
    Fault(
        name="Serve's controller is killed",
        cause=kill(World.controller),
        proofs=either_door(""),
    ),
    Fault(
        name="a node is killed (its raylet)",
        cause=kill_node,
        proofs=either_door("running it again"),
    ),
    Fault(
        name="the bridge is killed",
        cause=kill(World.bridge_pid),
        proofs={
            Door.WORKER: r"answering \d+ jobs that an earlier bridge left",
            Door.LIVE_RUNNER: "registered text-to-image",
        },
        errors=True,
        short=True,
    ),
    Fault(
        name="the orchestrator is killed, another starts",
        cause=restart_orchestrator,
        proofs={
            Door.WORKER: "answer dropped, the orchestrator has another certificate",
            Door.LIVE_RUNNER: "the client has left",
        },
        short=True,
    ),
    Fault(
        name="the orchestrator is frozen for 40 s",
        cause=freeze(World.orchestrator_pid, for_s=40),
        proofs={
            Door.WORKER: "Unavailable|UNAVAILABLE|ended the registration",
            Door.LIVE_RUNNER: "trying again in",
        },
    ),
    Fault(
        name="the network is cut for 30 s",
        cause=cut_network,
        proofs={
            Door.WORKER: "not delivered, again in",
            Door.LIVE_RUNNER: "the client has left",
        },
        errors=True,
        severed=True,
    ),
    Fault(
        name="the network is a black hole for 45 s",
        cause=blackhole,
        proofs={
            Door.WORKER: "not delivered, again in",
            Door.LIVE_RUNNER: "trying again in",
        },
        errors=True,
        severed=True,
        lacks=no_namespace,
    ),
    Fault(
        name="answers get 500 for 5 s",
        cause=misbehave(Wrong.ANSWERS_500, for_s=5),
        proofs={Door.WORKER: "the orchestrator answered 500"},
    ),
    Fault(
        name="answers are cut off for 3 s",
        cause=misbehave(Wrong.ANSWERS_CUT, for_s=3),
        proofs={Door.WORKER: "not delivered, again in"},
    ),
    Fault(
        name="answers get garbage for 5 s",
        cause=misbehave(Wrong.ANSWERS_GARBAGE, for_s=5),
        proofs={Door.WORKER: "not delivered, again in"},
    ),
    Fault(
        name="jobs are garbage for 3 s",
        cause=misbehave(Wrong.JOBS_GARBAGE, for_s=3),
        proofs={Door.WORKER: "the job is not JSON"},
        errors=True,
    ),
    Fault(
        name="messages are garbage for 3 s",
        cause=misbehave(Wrong.MESSAGES_GARBAGE, for_s=3),
        proofs={Door.WORKER: "sent a message that cannot be read"},
    ),
    Fault(
        name="jobs have 63 MiB for 5 s",
        cause=misbehave(Wrong.JOBS_LARGE, for_s=5),
        proofs={Door.WORKER: ""},
        errors=True,
    ),
    Fault(
        name="every job comes twice for 3 s",
        cause=misbehave(Wrong.JOBS_TWICE, for_s=3),
        proofs={Door.WORKER: "came again"},
        short=True,
    ),
    Fault(
        name="the journal's disk is full for 5 s",
        cause=fill_disk,
        proofs={Door.WORKER: "cannot be written"},
        lacks=lambda world: world.disk.missing,
        short=True,
    ),
    Fault(
        name="the clock jumps an hour back, answers are cut off for 2 s",
        cause=set_clock(-HOUR_S, then=misbehave(Wrong.ANSWERS_CUT, for_s=2)),
        proofs={Door.WORKER: "not delivered, again in"},
        lacks=lambda world: world.clock.missing,
    ),
    Fault(
        name="the clock jumps an hour ahead, the bridge is killed",
        cause=set_clock(HOUR_S, then=kill(World.bridge_pid)),
        proofs={
            Door.WORKER: r"answering \d+ jobs that an earlier bridge left",
            Door.LIVE_RUNNER: "registered text-to-image",
        },
        errors=True,
        lacks=lambda world: world.clock.missing,
    ),
)
