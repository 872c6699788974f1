"""A site: a network of hosts and the machine of their operator, all on this machine.

Whoever calls `open_site` must be PID 1 of namespaces of its own (`tests.hosts.on_prem` is started
so): it becomes the operator's machine, and everything that is started here ends with it. What is
written here is written to a /tmp of the site's own.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
KEPT = (ROOT, Path(sys.prefix), Path(sys.base_prefix))
"""What every machine needs of this one, should it be in /tmp."""

NETWORK = "10.77.0"
OPERATOR_IP = f"{NETWORK}.1"
HOME = Path("/tmp/livepeer")
"""Of the user, on every machine."""

SITE = Path("/tmp/site")
"""Seen by all hosts at the same path, as a file server would be."""

MODELS = SITE / "models"

PASSWD = f"""\
livepeer:x:0:0::{HOME}:/bin/bash
root:x:0:0::/root:/bin/bash
sshd:x:99:99::/:/bin/false
"""
"""The user's id is root's, for the checkout may be readable to root only."""

ETC = {
    "passwd": PASSWD,
    "hosts": f"127.0.0.1 localhost\n{OPERATOR_IP} operator\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
    # Without an answer to the name of a host every look-up would wait for a time-out.
    "resolv.conf": "",
}
"""On every machine, in place of this one's."""

SSHD_CONFIG = f"""\
HostKey {SITE}/host_key
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
StrictModes no
PidFile none
UseDNS no
MaxStartups 100
"""

RESOURCES = {"CPU": 2, "object_store_memory": 100_000_000}
"""That Ray finds on a host, in place of the whole machine's."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """A running host."""

    name: str
    ip: str

    async def run(self, command: str) -> str:
        """Runs a command over ssh, as Ray does; what it writes to stdout."""
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
        process = await asyncio.create_subprocess_exec(
            *("ssh", "-i", HOME / ".ssh/id_ed25519"),
            *(part for option in options for part in ("-o", option)),
            f"livepeer@{self.ip}",
            f"bash --login -i -c '{command}'",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        output, errors = await process.communicate()
        assert process.returncode == 0, f"{self.name}: {command}: {errors.decode()}"
        return output.decode()


def open_site(models: Path) -> None:
    """Turns this process's namespaces into the operator's machine and an empty network.

    Args:
        models: Hugging Face cache, to be seen as `MODELS`.
    """
    _run("mount", "--make-rprivate", "/")
    _run(HERE / "empty_tmp.sh", *KEPT, models)
    _run("hostname", "operator")
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", "lan", "type", "bridge")
    _run("ip", "address", "add", f"{OPERATOR_IP}/24", "dev", "lan")
    _run("ip", "link", "set", "lan", "up")
    MODELS.mkdir(parents=True)
    _run("mount", "--bind", models, MODELS)
    _run("cp", "-a", "/etc", SITE)
    for name, text in ETC.items():
        (SITE / "etc" / name).unlink(missing_ok=True)
        (SITE / "etc" / name).write_text(text)
    _run("mount", "--bind", SITE / "etc", "/etc")
    (SITE / "sshd_config").write_text(SSHD_CONFIG)
    _home_of_the_operator()
    _home_of_a_host()


def _home_of_the_operator() -> None:
    os.environ["HOME"] = str(HOME)
    os.chdir(ROOT)
    for key in (SITE / "host_key", HOME / ".ssh/id_ed25519"):
        key.parent.mkdir(parents=True, exist_ok=True)
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)


def _home_of_a_host() -> None:
    """What is on a machine before `ray up`: a key, and the versions that setup would install."""
    skeleton = SITE / "skeleton"
    (skeleton / ".ssh").mkdir(parents=True)
    shutil.copy(HOME / ".ssh/id_ed25519.pub", skeleton / ".ssh/authorized_keys")
    venv = skeleton / "livepeer-venv"
    venv.mkdir()
    for part in Path(sys.prefix).iterdir():
        (venv / part.name).symlink_to(part)
    shutil.copy(ROOT / "constraints.txt", venv)
    systemctl = SITE / "bin/systemctl"
    systemctl.parent.mkdir()
    systemctl.write_text(f"#!{sys.executable}\n{(HERE / 'systemctl.py').read_text()}")
    systemctl.chmod(0o755)
    (skeleton / ".profile").write_text(". ~/.bashrc\n")
    # The project itself is imported from where `ray up` puts it. An autoscaler that looks every
    # second instead of every five sees each step of what an operator does.
    (skeleton / ".bashrc").write_text(
        f"export PATH={systemctl.parent}:$PATH PYTHONPATH=$HOME/livepeer-ray\n"
        "export AUTOSCALER_UPDATE_INTERVAL_S=1\n"
    )


async def start_host(name: str, number: int, *, gpus: int) -> Host:
    """Starts a host in namespaces of its own and waits for its sshd.

    Args:
        name: its hostname.
        number: the last part of its address.
        gpus: how many Ray finds on it, which are a number for its scheduler.
    """
    ip = f"{NETWORK}.{number}"
    log = SITE / f"{name}.log"
    resources = json.dumps({**RESOURCES, "GPU": gpus})
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *("unshare", "--net", "--pid", "--mount", "--uts", "--ipc"),
            *("--fork", "--kill-child", "--mount-proc"),
            *(HERE / "host.sh", name, f"{ip}/24", resources, SITE, HOME, *KEPT),
            stdout=output,
            stderr=output,
        )
    while not (children := psutil.Process(process.pid).children()):
        await asyncio.sleep(0.02)
    (pid,) = (child.pid for child in children)
    interface = f"veth{number}"
    _run("ip", "link", "add", interface, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
    _run("ip", "link", "set", interface, "master", "lan", "up")
    async with asyncio.timeout(60):
        while not await _listens(ip):
            assert process.returncode is None, log.read_text()
            await asyncio.sleep(0.05)
    return Host(name=name, ip=ip)


async def _listens(ip: str) -> bool:
    try:
        _, writer = await asyncio.open_connection(ip, 22)
    except OSError:
        return False
    writer.close()
    return True


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True)
