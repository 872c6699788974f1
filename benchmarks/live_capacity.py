"""How fast the orchestrator learns what the cluster can do, and what 64 replicas get done.

    python -m benchmarks.live_capacity [--json FILE] [--replicas N] [--repetitions N]

The cluster is Ray's test cluster on this machine, its GPUs are a number, and the model is a
fake that takes 50 ms (benchmarks/fake_model.py). Bridge and orchestrator are processes of their
own and the real ones, TLS and gRPC between them included. Measured are

- from a replica's RUNNING in Serve's own status to its slot at the orchestrator, counted from the
  last look at Serve that did not see it yet: an upper bound, at most 0.1 s and two looks high,
- from `kill -9` of a replica to the slot's end there,
- from a node's joining in Ray's table to the slot of the replica that starts on it,
- jobs per second through all replicas against the ideal, and whose CPU time goes into one.
  Gateway clients, orchestrator, bridge and replicas share the machine, so on a small one the
  rate is the machine's; what each costs is its CPU time.

Exit status: 1 when one of the first three is slower than we promise, 2 without figures.
"""

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import signal
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before grpc and Ray are imported: no lines from gRPC's own logger, one thread a process, Ray's
# workers as important as the rest of the machine (ray_cluster.start_local), and the token with
# which we connect, for the head as well as for the nodes that join.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_AUTH_MODE", "token")

import aiohttp
import ray
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray.cluster_utils import Cluster

from benchmarks import cpu_time
from benchmarks.fake_model import JOB_S
from benchmarks.rig import BenchmarkFailed
from cluster import logs, machine, programs, ray_cluster, serve_client
from cluster.ai_models import AIModel, RayOptions
from cluster.errors import LivepeerRayError
from cluster.placement import Supply, place
from cluster.serve_config import app_name, serve_config
from deployments.model_args import DEPLOYMENT

WANTED_P95_S = 3.0

PATIENCE_S = 300.0
LOOK_S = 0.02
"""Between two looks at the orchestrator; Serve is asked five times less often."""

NODE_RESOURCE = "benchmark-node"
"""Of each joining node there is one, and each replica of JOINING takes one."""

EXIT_TOO_SLOW, EXIT_FAILED = 1, 2


def _model(name: str) -> AIModel:
    return AIModel(
        pipeline="text-to-image",
        model_id=f"benchmark/{name}",
        warm=True,
        ray=RayOptions(num_gpus=0, max_ongoing_requests=1),
    )


DYING, JOINING, MANY = _model("dying"), _model("joining"), _model("many")


def main() -> int:
    """Measures, prints, and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.live_capacity", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--replicas", type=int, default=64, help="for the jobs per second")
    parser.add_argument("--repetitions", type=int, default=15, help="of every change")
    parser.add_argument("--jobs", type=int, default=3000)
    arguments = parser.parse_args()
    logs.configure(as_json=False)
    where = machine.describe()
    ensure_token_if_auth_enabled()
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": arguments.replicas + 8,
            "include_dashboard": False,
            "object_store_memory": 300 * 1024 * 1024,
        },
    )
    try:
        ray_cluster.connect(cluster.address)
        figures = asyncio.run(_measure(cluster, arguments))
    except LivepeerRayError as error:
        print(f"no figures: {error}", file=sys.stderr)
        return EXIT_FAILED
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]
    report = {"machine": where, **figures}
    print(_table(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    slow = [name for name, times in report["seconds"].items() if times["p95"] > WANTED_P95_S]
    if slow:
        print(f"TOO SLOW, p95 over {WANTED_P95_S:g} s: {', '.join(slow)}")
        return EXIT_TOO_SLOW
    return 0


async def _measure(cluster: Cluster, arguments: argparse.Namespace) -> dict[str, Any]:
    _deploy({DYING: 2, JOINING: 1})
    async with _worker(cluster.address) as worker:
        print("replicas that die and come back", flush=True)
        await worker.advertised(DYING, lambda slots: slots == 2)
        killed, back = [], []
        for _ in range(arguments.repetitions):
            gone_s, back_s = await _kill_one(worker)
            killed.append(gone_s)
            back.append(back_s)
        print("nodes that join", flush=True)
        joined = [await _join_one(cluster, worker) for _ in range(arguments.repetitions)]
        print(f"{arguments.replicas} replicas at work", flush=True)
        _deploy({MANY: arguments.replicas})
        await worker.advertised(MANY, lambda slots: slots == arguments.replicas)
        throughput = await _jobs(worker, arguments.replicas, arguments.jobs)
    return {
        "seconds": {
            "replica RUNNING to advertised": _percentiles(back),
            "kill -9 to no longer advertised": _percentiles(killed),
            "node joined to advertised": _percentiles(joined),
        },
        "throughput": throughput,
    }


def _deploy(replicas: dict[AIModel, int]) -> None:
    placement = place(tuple(replicas), supply=Supply(nodes=None))
    config = serve_config(placement, models_dir=Path(), gpus=False)
    for application, (model, count) in zip(config["applications"], replicas.items(), strict=True):
        application["import_path"] = "benchmarks.fake_model:build"
        application["deployments"] = [
            {
                "name": DEPLOYMENT,
                "num_replicas": count,
                "max_ongoing_requests": 1,
                "ray_actor_options": {
                    "num_cpus": 0,
                    "resources": {NODE_RESOURCE: 1} if model is JOINING else {},
                },
            }
        ]
    serve_client.deploy(config)


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A bridge, the orchestrator that it works for, and the way there for a gateway."""

    gateway: aiohttp.ClientSession
    bridge: Process
    orchestrator_pid: int

    async def advertised(self, model: AIModel, condition: Callable[[int], bool]) -> float:
        """Waits until a model's slots are so; when that was seen."""

        async def slots() -> bool:
            async with self.gateway.get("/status") as response:
                capacity = (await response.json())["capacity"].get(model.pipeline, {})
            return condition(capacity.get(model.model_id, {"capacity": 0})["capacity"])

        _, seen_at = await self._until(slots, LOOK_S, f"{model.model_id} as it should be")
        return seen_at

    async def running(self, condition: Callable[[list[int]], bool]) -> float:
        """Waits until the running replicas of DYING are so, by their pids; when it was not yet."""

        async def replicas() -> bool:
            return condition(await asyncio.to_thread(_pids))

        not_yet_at, _ = await self._until(replicas, LOOK_S * 5, "replicas as they should be")
        return not_yet_at

    async def _until(
        self, look: Callable[[], Any], pause_s: float, what: str
    ) -> tuple[float, float]:
        """Looks until it is so; when the last look began that did not see it, and when one did."""
        not_yet_at = time.monotonic()
        deadline = not_yet_at + PATIENCE_S
        while (began := time.monotonic()) < deadline:
            if self.bridge.returncode is not None:
                raise BenchmarkFailed(f"the bridge ended with status {self.bridge.returncode}")
            if await look():
                return not_yet_at, time.monotonic()
            not_yet_at = began
            await asyncio.sleep(pause_s)
        raise BenchmarkFailed(f"no {what} within {PATIENCE_S:.0f} s")


def _pids() -> list[int]:
    """Of DYING's running replicas."""
    application = serve_client.details()["applications"][app_name(DYING.key)]
    replicas = application["deployments"].get(DEPLOYMENT, {"replicas": []})["replicas"]
    return [replica["pid"] for replica in replicas if replica["state"] == "RUNNING"]


@contextlib.asynccontextmanager
async def _worker(ray_address: str) -> AsyncIterator[Worker]:
    """The real bridge and a loopback orchestrator, in processes of their own."""
    secret = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="livepeer-ray-bench-") as folder:
        log = Path(folder, "orchestrator.log")
        async with programs.orchestrator(secret=secret, log=log) as orchestrator:
            bridge = await programs.start(
                *("bridge", "--ai-models", _ai_models(folder)),
                *("--ray-address", ray_address, "--orch-addr", orchestrator.url),
                *("--state-listen", "none", "--state-dir", folder),
                log=Path(folder, "bridge.log"),
                environment={"LIVEPEER_RAY_ORCH_SECRET": secret},
            )
            try:
                connector = aiohttp.TCPConnector(ssl=False, limit=0)  # the certificate is new
                async with aiohttp.ClientSession(orchestrator.url, connector=connector) as gateway:
                    yield Worker(gateway=gateway, bridge=bridge, orchestrator_pid=orchestrator.pid)
            finally:
                await programs.end(bridge)


def _ai_models(folder: str) -> str:
    """Writes the aiModels.json of all models; its path."""
    file = Path(folder, "aiModels.json")
    entries = [
        {"pipeline": model.pipeline, "model_id": model.model_id, "warm": True}
        for model in (DYING, JOINING, MANY)
    ]
    file.write_text(json.dumps(entries))
    return str(file)


async def _kill_one(worker: Worker) -> tuple[float, float]:
    """From the death of a replica to less capacity, and from its successor's RUNNING to more."""
    before = await asyncio.to_thread(_pids)
    killed_at = time.monotonic()
    os.kill(before[0], signal.SIGKILL)
    successor = asyncio.create_task(
        worker.running(lambda pids: len(pids) == len(before) and before[0] not in pids)
    )
    gone_at = await worker.advertised(DYING, lambda slots: slots < len(before))
    back_at = await worker.advertised(DYING, lambda slots: slots == len(before))
    return gone_at - killed_at, back_at - await successor


async def _join_one(cluster: Cluster, worker: Worker) -> float:
    """From a node's joining to the slot of its replica; the node leaves again."""
    # Cluster wants the main thread, and nothing of ours has to run meanwhile.
    node = cluster.add_node(num_cpus=1, resources={NODE_RESOURCE: 1})
    joined_at = time.monotonic()
    advertised_at = await worker.advertised(JOINING, lambda slots: slots == 1)
    cluster.remove_node(node)
    await worker.advertised(JOINING, lambda slots: slots == 0)
    return advertised_at - joined_at


async def _jobs(worker: Worker, replicas: int, jobs: int) -> dict[str, Any]:
    """Keeps every replica busy."""
    request = {"model_id": MANY.model_id, "prompt": "a photo"}

    async def send(count: int) -> None:
        left = iter(range(count))

        async def client() -> None:
            for _ in left:
                async with worker.gateway.post(f"/{MANY.pipeline}", json=request) as response:
                    if response.status != 200:
                        raise BenchmarkFailed(f"a job got {response.status}")
                    await response.read()

        await asyncio.gather(*(client() for _ in range(replicas)))

    await send(replicas * 4)
    known = {
        os.getpid(): "gateway clients",
        worker.orchestrator_pid: "orchestrator",
        worker.bridge.pid: "bridge",
    }
    before = cpu_time.read(known)
    began = time.monotonic()
    await send(jobs)
    took_s = time.monotonic() - began
    spent_s = cpu_time.between(before, cpu_time.read(known))
    ideal = replicas / JOB_S
    return {
        "replicas": replicas,
        "jobs": jobs,
        "jobs_per_s": round(jobs / took_s, 1),
        "ideal_jobs_per_s": round(ideal, 1),
        "of_ideal": round(jobs / took_s / ideal, 3),
        "cpu_ms_per_job": {kind: round(s / jobs * 1000, 2) for kind, s in spent_s.items()},
    }


def _percentiles(times_s: list[float]) -> dict[str, float]:
    return {
        "p50": round(statistics.median(times_s), 2),
        "p95": round(statistics.quantiles(times_s, n=20, method="inclusive")[-1], 2),
        "max": round(max(times_s), 2),
        "times": len(times_s),
    }


def _table(report: dict[str, Any]) -> str:
    """The report for people."""
    work = report["throughput"]
    return "\n".join(
        [
            "",
            *(
                f"{name:>32}: p50 {times['p50']:.2f} s, p95 {times['p95']:.2f} s "
                f"({times['times']} times)"
                for name, times in report["seconds"].items()
            ),
            "",
            f"{work['replicas']} replicas of {JOB_S * 1000:.0f} ms: {work['jobs_per_s']} jobs/s, "
            f"{work['of_ideal']:.0%} of the ideal {work['ideal_jobs_per_s']:.0f}",
            "CPU milliseconds per job: "
            + ", ".join(f"{kind} {ms}" for kind, ms in work["cpu_ms_per_job"].items()),
            "",
            machine.text(report["machine"]),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
