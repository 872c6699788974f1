"""`examples/on-prem/ray-cluster.yaml` as its operator uses it, from `ray up` to `ray down`.

`python -m tests.hosts.on_prem MODELS` runs as PID 1 of a site (`tests.hosts.site`); MODELS is a
directory with the tiny text-to-image model. The example is used as it is, with these hosts'
addresses in it and with Ray told what a host has: they share one machine's CPUs and no GPU.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

import yaml

from cluster.demo.gateway import send
from cluster.demo.samples import PROMPTS
from tests.e2e.conftest import PIPELINE, SECRET, TINY, Orchestrator, loopback_orchestrator
from tests.e2e.programs import program
from tests.hosts.site import HOME, MODELS, OPERATOR_IP, ROOT, Host, open_site, start_host

CLUSTER_FILE = HOME / "ray-cluster.yaml"
STOP_THE_WORKER = "systemctl --user stop livepeer-ray"
RESOURCES = "--num-cpus=2 --object-store-memory=100000000 --num-gpus"


async def main(models: Path) -> None:
    """Goes through the life of a cluster.

    Args:
        models: Hugging Face cache with the tiny model.
    """
    open_site(models)
    head, first, third = [
        await start_host(name, number)
        for number, name in enumerate(("head", "gpu-1", "gpu-2"), start=10)
    ]
    try:
        await prepare()
        say("three hosts run")
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
            await third.run("ray stop")
            say("the third host is taken away")
            await orchestrator.advertises({TINY: 1})
            say("one slot is advertised")
            await demo_job(orchestrator)
            assert raylets == [await host.run("pgrep raylet") for host in (head, first)]

            await ray("exec", CLUSTER_FILE, STOP_THE_WORKER)
            await orchestrator.has_no_worker()
            await ray("down", "--yes", CLUSTER_FILE)
            assert await head.run("pgrep raylet || true") == ""
            say("ray down")
    except BaseException:
        say(await head.run("cat livepeer-ray.log /tmp/ray/session_latest/logs/monitor.* || true"))
        raise


async def prepare() -> None:
    """Makes what the example wants to be there before `ray up`."""
    async with program("ray", "get-auth-token", "--generate") as generating:
        assert await generating.ends() == 0, generating.output
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
    config = yaml.safe_load((ROOT / "examples/on-prem/ray-cluster.yaml").read_text())
    config["provider"]["head_ip"] = head.ip
    config["provider"]["worker_ips"] = [worker.ip for worker in workers]
    for kind, gpus in (("head", 0), ("worker", 1)):
        commands = config[f"{kind}_start_ray_commands"]
        config[f"{kind}_start_ray_commands"] = [
            command.replace("ray start", f"ray start {RESOURCES}={gpus}") for command in commands
        ]
    CLUSTER_FILE.write_text(yaml.safe_dump(config))


async def ray(*arguments: str | Path) -> None:
    """Runs `ray` on the operator's machine."""
    async with program("ray", *arguments) as running:
        assert await running.ends() == 0, running.output


async def demo_job(orchestrator: Orchestrator) -> None:
    """Has a picture of the demo made."""
    picture = await send(orchestrator.http, PROMPTS[0], HOME)
    assert (picture.error, picture.size) == ("", "512x512")


def say(what: str) -> None:
    """Tells the test, which shows it when it fails."""
    sys.stdout.write(f"{time.monotonic() - BEGAN:5.0f} s  {what}\n")
    sys.stdout.flush()


BEGAN = time.monotonic()

if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
