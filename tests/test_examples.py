"""`ray-cluster.yaml` and `examples/`, as far as they can be checked without what they are for."""

import json
import os
import re
import shlex
import shutil
import subprocess
import threading
import tomllib
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.programs import BIN

ROOT = Path(__file__).parents[1]
ON_PREM = "examples/on-prem/ray-cluster.yaml"
CLUSTERS = ("ray-cluster.yaml", ON_PREM)
UNIT = ROOT / "examples/systemd/livepeer-ray.service"
SPOT_UNIT = ROOT / "examples/systemd/livepeer-ray-spot.service"
SETTINGS = ROOT / "examples/systemd/livepeer-ray.env"
VENV = "~/livepeer-venv"
CODE = "~/livepeer-ray"

PINNED = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
)
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def prepared(path: str) -> dict[str, Any]:
    """A cluster file as `ray up` understands it; raises where it does not."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config(yaml.safe_load((ROOT / path).read_text()))
    validate_config(config)
    return config


def commands(config: dict[str, Any]) -> list[str]:
    """Everything that is run on some node."""
    return [
        command
        for name in (
            "initialization_commands",
            "head_setup_commands",
            "worker_setup_commands",
            "head_start_ray_commands",
            "worker_start_ray_commands",
        )
        for command in config[name]
    ]


@cache
def help_of(*command: str) -> str:
    run = [str(BIN / command[0]), *command[1:], "--help"]
    return subprocess.run(run, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("path", CLUSTERS)
def test_ray_up_understands_the_file(path: str) -> None:
    config = prepared(path)
    types = config["available_node_types"]
    workers = [name for name in types if name != config["head_node_type"]] or list(types)
    assert all(0 < types[name]["min_workers"] <= types[name]["max_workers"] for name in workers)
    assert sum(types[name]["max_workers"] for name in workers) == config["max_workers"]


@pytest.mark.parametrize("path", CLUSTERS)
def test_every_command_is_a_command(path: str) -> None:
    accepted = help_of("ray", "start")
    for command in commands(prepared(path)):
        # As Ray wraps it, `bash --login -c -i '...'`.
        subprocess.run(["/bin/bash", "-n", "-c", f"true && ({command})"], check=True)
        for arguments in re.findall("ray start ([^;|&)]*)", command):
            flags = [word.partition("=")[0] for word in shlex.split(arguments)]
            assert all(flag in accepted for flag in flags), command


@pytest.mark.parametrize("path", CLUSTERS)
def test_the_files_that_are_sent_are_here_and_make_the_project(path: str) -> None:
    mounts: dict[str, str] = prepared(path)["file_mounts"]
    ours = {remote: ROOT / local for remote, local in mounts.items() if local[0] != "~"}
    assert all(local.exists() for local in ours.values())
    sent = {remote.removeprefix(f"{CODE}/") for remote in ours if remote.startswith(CODE)}
    packages = {
        package.parent.name for package in ROOT.glob("*/__init__.py") if _installed(package.parent)
    }
    named = {PROJECT["readme"], *PROJECT["license-files"]}
    assert sent == {"pyproject.toml", "constraints.txt"} | named | packages


def _installed(package: Path) -> bool:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = setuptools["packages"]["find"]["include"]
    return any(package.match(pattern) for pattern in patterns)


@pytest.mark.parametrize("path", CLUSTERS)
def test_nodes_trust_each_other_by_a_token(path: str) -> None:
    config = prepared(path)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for kind in ("head", "worker"):
        assert any("RAY_AUTH_MODE=token" in line for line in config[f"{kind}_setup_commands"])


@pytest.mark.parametrize("path", CLUSTERS)
def test_secrets_are_in_files_that_are_not_in_the_repository(path: str) -> None:
    mounts: dict[str, str] = prepared(path)["file_mounts"]
    assert mounts[_setting("EnvironmentFile").replace("%h", "~")].startswith("~")
    secrets = re.findall(r"SECRET=(.*)", SETTINGS.read_text())
    assert secrets == [""]


@pytest.mark.parametrize("path", CLUSTERS)
def test_versions_are_pinned(path: str) -> None:
    installing = [command for command in commands(prepared(path)) if "pip install" in command]
    assert installing
    for command in installing:
        _, _, arguments = command.partition("pip install")
        constraint, file, *what = shlex.split(arguments.partition("&&")[0])
        assert (constraint, file) == ("--constraint", f"{CODE}/constraints.txt")
        assert what == ["--editable", CODE] or all("==" in requirement for requirement in what)


@pytest.mark.parametrize("path", CLUSTERS)
def test_the_worker_is_a_unit_that_is_sent_along(path: str) -> None:
    config = prepared(path)
    assert config["file_mounts"]["~/.config/systemd/user/livepeer-ray.service"] == str(
        UNIT.relative_to(ROOT)
    )
    start = config["head_start_ray_commands"]
    stop_worker, stop_ray, start_ray, start_worker = start
    assert stop_worker.endswith("systemctl --user stop livepeer-ray")
    assert stop_ray == "ray stop"
    assert "ray start --head" in start_ray
    assert start_worker == "systemctl --user start livepeer-ray"
    assert any(f"-m venv {VENV} " in line for line in config["head_setup_commands"])
    assert _setting("ExecStart") == f"{VENV.replace('~', '%h')}/bin/livepeer-ray start"


def test_the_on_prem_cluster_runs_the_autoscaler_that_works() -> None:
    (start_ray,) = (
        command
        for command in prepared(ON_PREM)["head_start_ray_commands"]
        if "ray start" in command
    )
    assert "RAY_enable_autoscaler_v2=0" in start_ray


def test_the_autoscaler_is_told_which_machine_leaves_before_how_many(tmp_path: Path) -> None:
    # Or it would end Ray on the one that it likes least, whichever that is.
    machines = ["127.0.0.2", "127.0.0.3"]
    config = prepared(ON_PREM)
    config["provider"] |= {"head_ip": "127.0.0.1", "worker_ips": machines}
    (tmp_path / "livepeer-venv").symlink_to(BIN.parent)
    (start_ray,) = (line for line in config["head_start_ray_commands"] if "ray start" in line)
    (read,) = re.findall(r"--autoscaling-config=~/(\S+)", start_ray)
    machines_command, config_command = config["head_setup_commands"][-2:]

    def told() -> tuple[list[str], list[str]]:
        """The machines that the autoscaler's provider has, and those of the file it reads."""
        (state,) = tmp_path.glob("ray/cluster-*.state")
        has = set(json.loads(state.read_text())) - {"127.0.0.1"}
        of_file: list[str] = yaml.safe_load((tmp_path / read).read_text())["provider"]["worker_ips"]
        return sorted(has), of_file

    def run(command: str) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "RAY_TMPDIR": str(tmp_path),
        }
        subprocess.run(["/bin/bash", "-c", command], env=environment, check=True)

    bootstrap = tmp_path / "ray_bootstrap_config.yaml"
    bootstrap.write_text(yaml.safe_dump(config))
    run(machines_command)
    run(config_command)
    assert told() == (machines, machines)
    config["provider"]["worker_ips"] = machines[:1]
    bootstrap.write_text(yaml.safe_dump(config))
    assert told() == (machines, machines)
    run(machines_command)
    assert told() == (machines[:1], machines)
    run(config_command)
    assert told() == (machines[:1], machines[:1])


def _setting(name: str, unit: Path = UNIT) -> str:
    lines = unit.read_text().replace("\\\n", "")
    (value,) = re.findall(rf"^{name}=(.*)$", lines, re.M)
    return str(value)


@pytest.mark.parametrize("unit", [UNIT, SPOT_UNIT])
def test_the_unit_is_one(unit: Path, tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not on this machine")
    # It wants the command to be there, too.
    (tmp_path / "livepeer-venv").mkdir()
    (tmp_path / "livepeer-venv/bin").symlink_to(BIN)
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    command = ["systemd-analyze", "--user", "verify", str(unit)]
    verified = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert (verified.returncode, verified.stderr) == (0, "")


def test_the_unit_waits_for_the_workers_end() -> None:
    from cluster.bridge.bridge import LAST_ANSWERS_S
    from cluster.bridge_settings import GRACE_S
    from cluster.commands.start import DEPLOYER_END_S
    from cluster.settings import EXIT_CONFIG, EXIT_INVALID_SECRET

    assert float(_setting("TimeoutStopSec")) > GRACE_S + LAST_ANSWERS_S + 10 + DEPLOYER_END_S
    fatal = set(map(int, _setting("RestartPreventExitStatus").split()))
    assert fatal == {EXIT_CONFIG, EXIT_INVALID_SECRET}


def test_the_units_settings_exist() -> None:
    accepted = help_of("livepeer-ray", "start")
    for name in re.findall(r"^(\w+)=", SETTINGS.read_text(), re.M):
        assert f"[{name}]" in accepted


class InstanceMetadata(BaseHTTPRequestHandler):
    """AWS's metadata service, version 2: whoever has no token is turned away.

    There is a notice when it is asked for the third time.
    """

    asked = 0

    def do_PUT(self) -> None:
        assert self.path == "/latest/api/token"
        assert int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) > 0
        self._answer(200, b"a token")

    def do_GET(self) -> None:
        assert self.path == "/latest/meta-data/spot/instance-action"
        if self.headers["X-aws-ec2-metadata-token"] != "a token":
            self._answer(401)
            return
        type(self).asked += 1
        if self.asked < 3:
            self._answer(404)
        else:
            self._answer(200, b'{"action": "terminate", "time": "2030-01-01T00:00:00Z"}')

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def test_a_spot_instance_is_drained_at_its_notice(tmp_path: Path) -> None:
    bin_ = tmp_path / "livepeer-venv/bin"
    bin_.mkdir(parents=True)
    for name, script in (("livepeer-ray", 'echo "$@" > $HOME/called'), ("sleep", "")):
        (bin_ / name).write_text(f"#!/bin/sh\n{script}\n")
        (bin_ / name).chmod(0o755)
    # As systemd does: its specifiers, a doubled dollar sign is one, then words as in a shell.
    command = _setting("ExecStart", SPOT_UNIT).replace("$$", "$")
    command = command.replace("%h", str(tmp_path)).replace("%H", "worker-1")
    with ThreadingHTTPServer(("127.0.0.1", 0), InstanceMetadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {
            "HOME": str(tmp_path),
            "PATH": f"{bin_}:{os.environ['PATH']}",
            "METADATA": f"http://127.0.0.1:{server.server_port}/latest",
        }
        subprocess.run(shlex.split(command), env=environment, check=True, timeout=60)
        server.shutdown()
    assert InstanceMetadata.asked == 3
    called = (tmp_path / "called").read_text().split()
    assert called[:2] == ["drain", "worker-1"]
    assert called[2] in help_of("livepeer-ray", "drain")
    # The notice comes two minutes before the end.
    assert 60 < int(called[3]) < 120
