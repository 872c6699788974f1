"""A real `ray up` onto hosts of this machine, where it allows them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NAMESPACES = ("unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--mount-proc")
NEEDED = ("sshd", "ssh", "ssh-keygen", "rsync", "ip", "unshare", "setpriv", "pgrep")
PACKAGES = "openssh-server openssh-client rsync iproute2 util-linux procps"
PASS_S = 600.0


ENVIRONMENT = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


def why_not() -> str | None:
    """What this machine lacks for hosts in namespaces; None when they can be had."""
    missing = [name for name in NEEDED if not shutil.which(name, path=ENVIRONMENT["PATH"])]
    if missing:
        return f"hosts need {', '.join(missing)} (Debian: {PACKAGES})"
    trial = "mount --make-rprivate / && mount -t tmpfs tmpfs /mnt && ip link add lan type bridge"
    tried = subprocess.run(
        [*NAMESPACES, "sh", "-c", trial],
        env=ENVIRONMENT,
        check=False,
        capture_output=True,
        text=True,
    )
    if tried.returncode:
        return f"this machine does not allow hosts in namespaces: {tried.stderr.strip()}"
    return None


@pytest.mark.timeout(PASS_S + 30)
def test_an_on_prem_cluster_from_up_to_down(tiny_models_dir: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    # Everything is a descendant of the PID 1 that this makes: it ends with us, whatever happens.
    site = ["setpriv", "--pdeathsig", "KILL", *NAMESPACES, "--kill-child"]
    scenario = [sys.executable, "-m", "tests.hosts.on_prem", str(tiny_models_dir)]
    with subprocess.Popen(
        [*site, *scenario],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=PASS_S)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
    assert process.returncode == 0, output
