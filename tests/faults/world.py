"""The processes that faults happen to, all of them real: Ray, orchestrator, network, bridge."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import psutil

from tests.e2e.conftest import RayCluster
from tests.e2e.programs import Program, program
from tests.faults.clock import Clock
from tests.faults.cluster import AI_MODELS, MODEL_ID, REPLICAS
from tests.faults.disk import Disk
from tests.faults.doors import Door
from tests.faults.ledger import End, Job, Ledger
from tests.faults.network import Link, Namespace, Wire, namespace
from tests.free_ports import free_port

SECRET = "the secret of the fault tests"
ROOT = Path(__file__).parents[2]

STATUS_S = 2.0
"""An orchestrator that says nothing for so long does not answer."""

START_S = 300.0

LOOPBACK = Link(device="lo", ours="127.0.0.1", theirs="127.0.0.1")
"""Without a namespace."""

T = TypeVar("T")


class World:
    """Everything that a fault can happen to; `world` makes it."""

    def __init__(
        self, *, directory: Path, ray: RayCluster, stdin: asyncio.StreamWriter, door: Door
    ) -> None:
        """Starts nothing.

        Args:
            directory: for everybody's files.
            ray: the cluster.
            stdin: where nodes are asked for.
            door: that the bridge is to open first.
        """
        self.ray = ray
        self.door = door
        """Through which work comes now; see `use`."""
        self.clock = Clock(directory)
        self.disk = Disk(directory / "disk")
        """Where the journal is."""
        self.namespace: Namespace | str = "it was not asked for"
        """Or why there is none."""
        self.wires: list[Wire] = []
        """Between bridge and orchestrator: the first leads to the orchestrator."""
        self.ledgers: list[Ledger] = []
        """Of every orchestrator process so far; the last one's is that of the present one."""
        self.orchestrator: Program
        self.bridge: Program
        self.bridge_log: list[str] = []
        """Of every bridge process so far."""
        self._log_from = 0
        """Where the time of the present orchestrator begins in it."""
        self._cluster_stdin = stdin
        self._http: aiohttp.ClientSession
        self._orchestrator_runs = AsyncExitStack()
        self._orchestrator_address = ""
        self._runner_listen = ""
        """Where the bridge takes a live runner's requests."""

    # What happens to it.

    async def use(self, door: Door) -> None:
        """Has the bridge end in order where it uses another door, and come again through this."""
        if door is not self.door:
            self.door = door
            self.bridge.signal(signal.SIGTERM)
            await self.bridge.ends()

    def replicas(self) -> set[int]:
        """Those of all replicas."""
        return self.ray.replicas(MODEL_ID)

    def controller(self) -> int:
        """The process of Serve's controller."""
        return self._ray_process(lambda process: process.name().startswith("ray::ServeController"))

    def raylet(self) -> int:
        """The process that is a node with a replica on it, all of whose others end with it."""
        parents: list[int] = [psutil.Process(replica).ppid() for replica in self.replicas()]
        return max(parents, key=parents.count)

    def bridge_pid(self) -> int:
        """The bridge's process."""
        return self.bridge.pid

    def orchestrator_pid(self) -> int:
        """The orchestrator's."""
        return self.orchestrator.pid

    async def add_node(self) -> None:
        """Adds a node to the cluster."""
        self._cluster_stdin.write(b"\n")
        await self._cluster_stdin.drain()

    async def misbehave(self, how: str) -> None:
        """Has the orchestrator do something wrong, until it is told otherwise."""
        async with self._http.post("/misbehave", data=how) as response:
            assert response.status == 200, await response.text()

    async def restart_orchestrator(self) -> None:
        """Kills it and starts another at the same port: a new certificate, task ids from 0."""
        self.orchestrator.signal(signal.SIGKILL)
        await self.orchestrator.ends()
        await self._orchestrator_runs.aclose()
        self.ledgers[-1].end(End.ORPHANED)
        await self.start_orchestrator(self._orchestrator_address)

    # How it is.

    async def slots(self) -> int | None:
        """How many are advertised; None where the orchestrator does not answer."""
        try:
            async with asyncio.timeout(STATUS_S):
                return await self.door.slots(self._http)
        except (aiohttp.ClientError, TimeoutError):
            return None

    def open_jobs(self) -> list[Job]:
        """Those that the orchestrator waits for."""
        return self.ledgers[-1].open_jobs()

    async def is_well(self, *, late_s: float) -> bool:
        """Whether all slots are advertised, jobs succeed and none has waited longer than this."""
        slots = await self.slots()
        if slots is None or slots < REPLICAS or self.ledgers[-1].failing:
            return False
        self.give_up_what_never_came(late_s=late_s)
        too_old = time.monotonic() - late_s
        return all(job.handed_out_at > too_old for job in self.open_jobs())

    def give_up_what_never_came(self, *, late_s: float) -> None:
        """Ends the jobs that the bridge has not heard of, though this much later it would have."""
        now = time.monotonic()
        for job in self.open_jobs():
            cut_off = job.handed_out_at < now - late_s and self.ledgers[-1].was_cut_off(job)
            if cut_off and not self._came(job):
                job.end, job.ended_at = End.NEVER_CAME, now

    def _came(self, job: Job) -> bool:
        """Whether the bridge has heard of a job: every one stands in its journal or its log."""
        mention = re.compile(rf"\b{job.name}\b")
        taken = re.compile(rf'{{"taken": \["[0-9a-f]+", {job.name.removeprefix("job ")},')
        return any(map(mention.search, self.bridge_log[self._log_from :])) or any(
            taken.search(journal.read_text()) for journal in self.disk.at.glob("*.jsonl")
        )

    def memory(self) -> Iterator[tuple[str, int, int]]:
        """What every process is, its pid and its resident bytes."""
        ours = {self.bridge.pid: "bridge", self.orchestrator.pid: "orchestrator"}
        theirs = psutil.Process(self.ray.pid).children(recursive=True)
        for process in [*_processes(ours), *theirs]:
            # Processes end at any moment; that is what this is about.
            with contextlib.suppress(psutil.NoSuchProcess):
                kind = ours.get(process.pid) or _kind(process.name())
                yield kind, process.pid, process.memory_info().rss

    def _ray_process(self, wanted: Callable[[psutil.Process], bool]) -> int:
        for process in psutil.Process(self.ray.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if wanted(process):
                    return int(process.pid)
        raise AssertionError("no such process in the Ray cluster")

    # How it is started.

    @property
    def url(self) -> str:
        """Where the orchestrator's callers find it."""
        return f"https://{self._orchestrator_address}"

    async def start_orchestrator(self, listen: str) -> None:
        """Starts an orchestrator with a ledger of its own."""
        ledger, self._log_from = Ledger(), len(self.bridge_log)
        self.ledgers.append(ledger)
        self.orchestrator = await self._orchestrator_runs.enter_async_context(
            program(
                *("livepeer-ray", "orchestrator", "--listen", listen),
                environment={"LIVEPEER_RAY_ORCH_SECRET": SECRET},
                on_line=ledger.read,
            )
        )
        line = await self.orchestrator.says("^orchestrator listening on https://")
        self._orchestrator_address = line.split()[3].removeprefix("https://")

    @asynccontextmanager
    async def running_orchestrator(self, listen: str) -> AsyncIterator[None]:
        """An orchestrator, be it another process each time."""
        try:
            await self.start_orchestrator(listen)
            connector = aiohttp.TCPConnector(ssl=False, force_close=True)
            async with aiohttp.ClientSession(self.url, connector=connector) as self._http:
                yield
        finally:
            await self._orchestrator_runs.aclose()

    @asynccontextmanager
    async def running_wires(self) -> AsyncIterator[None]:
        """The network between bridge and orchestrator."""
        within = self.namespace if isinstance(self.namespace, Namespace) else None
        bridge = within.bridge if within else LOOPBACK
        orchestrator = within.orchestrator if within else LOOPBACK
        self._runner_listen = f"{bridge.ours}:{free_port()}"
        self.wires = [
            Wire(host=bridge.theirs, target=self._orchestrator_address, within=within),
            Wire(host=orchestrator.theirs, target=self._runner_listen, within=within),
        ]
        for wire in self.wires:
            await wire.start()
        try:
            yield
        finally:
            for wire in self.wires:
                await wire.kill()

    @asynccontextmanager
    async def running_bridge(self) -> AsyncIterator[None]:
        """A bridge that is started again as often as it ends, as its supervisor does."""
        to_orchestrator, to_bridge = self.wires
        command = (
            *("livepeer-ray", "bridge", "--orch-addr", to_orchestrator.address),
            *("--ray-address", self.ray.address, "--ai-models", AI_MODELS),
            *("--state-dir", str(self.disk.at), "--state-listen", "none"),
            *("--runner-listen", self._runner_listen),
            *("--runner-url", f"http://{to_bridge.address}"),
        )
        environment = {"LIVEPEER_RAY_ORCH_SECRET": SECRET, **self.clock.environment}
        started = asyncio.Event()

        async def supervise() -> None:
            while True:
                async with program(
                    *(*command, "--register", self.door),
                    environment=environment,
                    on_line=self.bridge_log.append,
                ) as self.bridge:
                    started.set()
                    await self.bridge.process.wait()

        supervising = asyncio.create_task(supervise())
        await started.wait()
        try:
            yield
        finally:
            supervising.cancel()
            await asyncio.gather(supervising, return_exceptions=True)


@asynccontextmanager
async def world(
    directory: Path, *, networks: bool, door: Door = Door.WORKER
) -> AsyncIterator[World]:
    """Starts everything; ends everything.

    Args:
        directory: an empty one.
        networks: with a network namespace where we may make one.
        door: that the bridge opens first.
    """
    async with AsyncExitStack() as stack:
        cluster = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.faults.cluster"),
            stdin=PIPE,
            stdout=PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
            env={
                **os.environ,
                # Replicas import this package too.
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
                "RAY_AUTH_MODE": "token",
                "RAY_USAGE_STATS_ENABLED": "0",
            },
        )
        stack.push_async_callback(cluster.communicate, b"")
        assert cluster.stdin is not None
        assert cluster.stdout is not None
        async with asyncio.timeout(START_S):
            address = (await cluster.stdout.readline()).decode().strip()
        assert address, "the Ray cluster did not start"
        made = World(
            directory=directory,
            ray=RayCluster(address=address, pid=cluster.pid),
            stdin=cluster.stdin,
            door=door,
        )
        stack.enter_context(made.disk.mounted())
        if networks:
            made.namespace = stack.enter_context(namespace())
        host = "127.0.0.1"
        if isinstance(made.namespace, Namespace):
            host = made.namespace.orchestrator.ours
        await stack.enter_async_context(made.running_orchestrator(f"{host}:0"))
        await stack.enter_async_context(made.running_wires())
        await stack.enter_async_context(made.running_bridge())
        yield made


async def until_told_to_end(running: Coroutine[Any, Any, T]) -> T:
    """Has SIGTERM end all processes in order, as SIGINT does."""
    task = asyncio.ensure_future(running)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def _processes(pids: Iterable[int]) -> Iterator[psutil.Process]:
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            yield psutil.Process(pid)


def _kind(name: str) -> str:
    """What a process of Ray's is, by the title that Ray gives it."""
    found = re.match(r"ray::Serve(Replica|Controller)", name)
    return found[1].lower() if found else name.removeprefix("ray::").partition(":")[0]
