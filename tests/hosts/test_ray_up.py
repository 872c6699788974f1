"""A real `ray up` onto hosts of this machine, where it allows them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hosts.on_prem import PASS_S
from tests.hosts.site import ROOT

NAMESPACES = ("unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--mount-proc")
PROGRAMS = ("sshd", "ssh", "ssh-keygen", "rsync", "ip", "pgrep")
PACKAGES = "openssh-server openssh-client rsync iproute2 procps"

ENVIRONMENT = {
    "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
    "PYTHONPATH": str(ROOT),
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Nothing else: neither the hosts nor their operator know of this machine's user."""


def not_allowed(trial: str) -> str:
    """Why this machine does not let a process in namespaces of its own do something, or nothing."""
    if not shutil.which("unshare"):
        return "there is no unshare"
    tried = subprocess.run(
        [*NAMESPACES, "sh", "-c", trial], env=ENVIRONMENT, capture_output=True, text=True
    )
    return tried.stderr.strip() if tried.returncode else ""


@pytest.fixture(scope="module")
def _site_can_be_had() -> None:
    """Skips where the machine does not allow it; fails where the developer can help it."""
    if reason := not_allowed("mount --make-rprivate / && mount -t tmpfs tmpfs /media"):
        pytest.skip(f"hosts in namespaces need root, and a kernel that allows it: {reason}")
    if missing := [name for name in PROGRAMS if not shutil.which(name, path=ENVIRONMENT["PATH"])]:
        pytest.fail(f"no {', '.join(missing)} here; apt-get install {PACKAGES}", pytrace=False)
    if reason := not_allowed("ip link add lan type bridge && ip link add veth1 type veth"):
        pytest.skip(f"the kernel allows no network of hosts: {reason}")


@pytest.mark.usefixtures("_site_can_be_had")
@pytest.mark.timeout(PASS_S + 90)
def test_an_on_prem_cluster_from_up_to_down(tiny_models_dir: Path) -> None:
    # Everything is a descendant of the PID 1 that this makes, and ends with us, whatever happens.
    site = ["setpriv", "--pdeathsig", "KILL", *NAMESPACES, "--kill-child"]
    scenario = [sys.executable, "-m", "tests.hosts.on_prem", str(tiny_models_dir)]
    done = subprocess.run(
        [*site, *scenario],
        env=ENVIRONMENT,
        cwd=ROOT,
        timeout=PASS_S + 60,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        pytest.fail("the pass broke off; how far it came and why is below", pytrace=False)
