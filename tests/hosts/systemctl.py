"""A stand-in for `systemctl --user`, for a test's hosts have no systemd.

It starts a unit's ExecStart with its EnvironmentFile and little else in the environment, and ends
it with SIGTERM. It knows nothing else that a unit may say, and starts nothing again.
"""

import configparser
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

HOME = Path.home()


def main() -> None:
    match sys.argv[1:]:
        case ["--user", "daemon-reload"]:
            pass
        case ["--user", "start", name]:
            start(name)
        case ["--user", "stop", name]:
            stop(name)
        case arguments:
            sys.exit(f"this stand-in for systemctl does not know {arguments}")


def start(name: str) -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.read(HOME / f".config/systemd/user/{name}.service")
    command, settings = (
        unit["Service"][key].replace("%h", str(HOME)) for key in ("ExecStart", "EnvironmentFile")
    )
    variables = dict(
        line.split("=", 1)
        for line in Path(settings).read_text().splitlines()
        if line and not line.startswith("#")
    )
    # PYTHONPATH is in place of `pip install --editable`, which the setup was spared.
    basic = {"HOME": str(HOME), "PATH": os.defpath, "PYTHONPATH": os.environ["PYTHONPATH"]}
    with pid_file(name).open("w") as running, (HOME / f"{name}.log").open("ab") as log:
        # Held by the unit's process, which inherits it, until that ends.
        fcntl.flock(running, fcntl.LOCK_EX)
        process = subprocess.Popen(
            command.split(),
            env=basic | variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[running.fileno()],
            start_new_session=True,
        )
        running.write(str(process.pid))


def stop(name: str) -> None:
    if not pid_file(name).exists():
        return
    with pid_file(name).open() as running:
        os.kill(int(running.read()), signal.SIGTERM)
        fcntl.flock(running, fcntl.LOCK_EX)
    pid_file(name).unlink()


def pid_file(name: str) -> Path:
    return HOME / f".{name}.pid"


if __name__ == "__main__":
    main()
