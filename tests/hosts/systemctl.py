#!/usr/bin/env python3
"""A stand-in for `systemctl --user`, for there is no systemd in a test's hosts.

Runs a unit's ExecStart with its EnvironmentFile, again as its Restart settings say, and ends it
with SIGTERM. It knows no other settings and no unit but simple services.
"""

import configparser
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

UNITS = Path.home() / ".config/systemd/user"


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
    service = read(name)
    if os.fork() == 0:
        os.setsid()
        with Path(f"{name}.log").open("ab", buffering=0) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        pid_file(name).write_text(str(os.getpid()))
        run(service)


def run(service: "configparser.SectionProxy") -> None:
    never_again = {0, *map(int, service["RestartPreventExitStatus"].split())}
    variables = Path(expanded(service["EnvironmentFile"])).read_text().splitlines()
    pairs = (line.split("=", 1) for line in variables if "=" in line and line[0] != "#")
    main_process: subprocess.Popen[bytes] | None = None
    stopping = False

    def end(*_: object) -> None:
        nonlocal stopping
        stopping = True
        if main_process:
            main_process.terminate()

    signal.signal(signal.SIGTERM, end)
    environment = os.environ | dict(pairs)
    while not stopping:
        main_process = subprocess.Popen(expanded(service["ExecStart"]).split(), env=environment)
        if main_process.wait() in never_again or service["Restart"] != "on-failure":
            break
        time.sleep(float(service["RestartSec"]))
    os._exit(0)


def stop(name: str) -> None:
    read(name)
    try:
        pid = int(pid_file(name).read_text())
    except FileNotFoundError:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        while True:
            os.kill(pid, 0)
            time.sleep(0.1)
    pid_file(name).unlink()


def read(name: str) -> "configparser.SectionProxy":
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    if not unit.read(UNITS / f"{name}.service"):
        sys.exit(f"Unit {name}.service not found.")
    return unit["Service"]


def pid_file(name: str) -> Path:
    return Path.home() / f".{name}.pid"


def expanded(text: str) -> str:
    return text.replace("%h", str(Path.home()))


if __name__ == "__main__":
    main()
