"""`examples/on-prem/ray-cluster.yaml` as its operator uses it, from `ray up` to `ray down`.

`python -m tests.hosts.on_prem MODELS` runs as PID 1 of a site (`tests.hosts.site`); MODELS is a
directory with the tiny text-to-image model. Of the example the hosts' addresses alone are changed.
"""

import asyncio
import json
import re
import sys
import time
from pathlib import Path

from cluster.demo.gateway import send
from cluster.demo.samples import PROMPTS
from tests.e2e.conftest import PIPELINE, SECRET, TINY, Orchestrator, loopback_orchestrator
from tests.e2e.programs import program
from tests.hosts.site import HOME, MODELS, OPERATOR_IP, ROOT, Host, open_site, start_host

PASS_S = 900.0
"""Tells a hang from a slow machine: a pass takes two minutes on two quiet cores, and was
seen to take seven on two very busy ones."""

CLUSTER_FILE = HOME / "ray-cluster.yaml"
UNIT = "livepeer-ray"
LOGS = f"{UNIT}.log /tmp/ray/session_latest/logs/monitor.log"


async def main(models: Path) -> None:
    """Goes through the life of a cluster.

    Args:
        models: Hugging Face cache with the tiny model.
    """
    open_site(models)
    head = await start_host("head", 10, gpus=0)
    first = await start_host("gpu-1", 11, gpus=1)
    third = await start_host("gpu-2", 12, gpus=1)
    await prepare()
    say("three hosts run")
    try:
        async with asyncio.timeout(PASS_S):
            await live(head, first, third)
    except Exception:
        say(await head.run(f"tail -n 30 {LOGS} 2>&1 || true"))
        raise


async def live(head: Host, first: Host, third: Host) -> None:
    """From `ray up` to `ray down`."""
    async with loopback_orchestrator(f"{OPERATOR_IP}:8935") as orchestrator:
        write_cluster_file(head, first)
        await ray("up", "--yes", CLUSTER_FILE)
        say("ray up")
        await orchestrator.advertises({TINY: 1})
        say("one slot is advertised")
        await demo_job(orchestrator)
        raylets = [await host.run("pgrep raylet") for host in (head, first)]

        write_cluster_file(head, first, third)
        await ray("up", "--yes", "--no-restart", CLUSTER_FILE)
        say("ray up with a third host")
        await orchestrator.advertises({TINY: 2})
        say("two slots are advertised")
        await asyncio.gather(demo_job(orchestrator), demo_job(orchestrator))

        write_cluster_file(head, first)
        await ray("up", "--yes", "--no-restart", CLUSTER_FILE)
        await head.run(f"livepeer-ray drain {third.ip}")
        say("the third host is taken away")
        await orchestrator.advertises({TINY: 1})
        say("one slot is advertised")
        await demo_job(orchestrator)
        now = [await host.run("pgrep raylet") for host in (head, first)]
        assert now == raylets, "Ray was restarted on a host that stayed"

        await ray("exec", CLUSTER_FILE, f"systemctl --user stop {UNIT}")
        await orchestrator.has_no_worker()
        say("the worker left")
    await ray("down", "--yes", CLUSTER_FILE)
    assert await head.run("pgrep raylet || true") == "", "Ray still runs on the head"
    say("ray down")


async def prepare() -> None:
    """Makes what the example wants to be there before `ray up`."""
    await ray("get-auth-token", "--generate")
    own = HOME / ".lpData"
    own.mkdir()
    entry = {"pipeline": PIPELINE, "model_id": TINY, "warm": True, "capacity": 2}
    (own / "aiModels.json").write_text(json.dumps([entry]))
    settings = (ROOT / "examples/systemd/livepeer-ray.env").read_text()
    settings = settings.replace("orchestrator.example", OPERATOR_IP)
    settings = settings.replace("ORCH_SECRET=", f"ORCH_SECRET={SECRET}")
    (own / "livepeer-ray.env").write_text(f"{settings}LIVEPEER_RAY_AI_MODELS_DIR={MODELS}\n")


def write_cluster_file(head: Host, *workers: Host) -> None:
    """Writes the example with these hosts in it."""
    text = (ROOT / "examples/on-prem/ray-cluster.yaml").read_text()
    worker_ips = f"[{', '.join(worker.ip for worker in workers)}]"
    for key, value in {"head_ip": head.ip, "worker_ips": worker_ips}.items():
        text, found = re.subn(rf"^(  {key}:) .*$", rf"\1 {value}", text, flags=re.M)
        assert found == 1, f"the example has no {key}"
    CLUSTER_FILE.write_text(text)


async def ray(*arguments: str | Path) -> None:
    """Runs `ray` on the operator's machine."""
    async with program("ray", *arguments) as running:
        assert await running.ends() == 0, f"ray {arguments[0]} failed:\n{running.output}"


async def demo_job(orchestrator: Orchestrator) -> None:
    """Has a picture of the demo made."""
    picture = await send(orchestrator.http, PROMPTS[0], HOME)
    assert picture.size == "512x512", f"no picture: {picture.error or picture.size}"


def say(what: str) -> None:
    """Tells how far we came, which pytest shows where the test fails, and at once with `-s`."""
    sys.stdout.write(f"{time.monotonic() - BEGAN:5.0f} s  {what}\n")
    sys.stdout.flush()


BEGAN = time.monotonic()

if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
