"""What the bridge needs: flags and environment, read once into frozen settings."""

import argparse
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

from cluster.bridge.address import Address
from cluster.bridge.deadlines import DEADLINE_S, Deadlines
from cluster.errors import ConfigError
from cluster.settings import (
    ENVIRONMENT_PREFIX,
    add_flag,
    add_ray_address_flag,
    add_state_listen_flag,
    directory,
    existing_file,
    host_port,
    listen_address,
    seconds,
    state_listen,
)

NEWEST_KNOWN_VERSION = "0.9.1"
"""An orchestrator turns away workers older than itself; go-livepeer's newest release we know."""

GRACE_S = 120.0

RUNNER_LISTEN = "127.0.0.1:4936"


@dataclass(frozen=True, slots=True, kw_only=True)
class Orchestrator:
    """One orchestrator to work for."""

    address: Address
    fingerprint: str | None = None
    """SHA-256 of its certificate, lowercase hex; None to trust the one that it presents."""


class Register(StrEnum):
    """How the cluster becomes a worker of an orchestrator."""

    WORKER = "worker"
    """Over gRPC, as a remote AI worker."""
    LIVE_RUNNER = "live-runner"
    """By heartbeats; requests come over HTTP."""
    STATIC_RUNNER = "static-runner"
    """Not at all: the orchestrator's own file names us; requests come over HTTP."""
    BOTH = "both"
    """The first two."""

    @property
    def as_worker(self) -> bool:
        """Whether over gRPC."""
        return self in (Register.WORKER, Register.BOTH)

    @property
    def as_live_runner(self) -> bool:
        """Whether by heartbeats."""
        return self in (Register.LIVE_RUNNER, Register.BOTH)

    @property
    def over_http(self) -> bool:
        """Whether requests come over HTTP."""
        return self is not Register.WORKER


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeSettings:
    """What the bridge needs."""

    ai_models: str
    ray_address: str
    orchestrators: tuple[Orchestrator, ...]
    """At least one."""
    orch_secret: SecretStr
    """The same for all of them."""
    advertise_version: str
    deadlines: Deadlines
    grace_s: float
    state_listen: tuple[str, int] | None
    """Where the bridge tells its state; None for nowhere."""
    state_dir: Path
    """For what a bridge leaves to the next one."""
    register: Register = Register.WORKER
    runner_listen: tuple[str, int]
    """Where a bridge that is a live runner takes requests."""
    runner_url: str
    """How orchestrators reach that."""

    def environment(self) -> dict[str, str]:
        """These settings as variables for a child, which keeps the secret off command lines."""
        values = {
            "AI_MODELS": self.ai_models,
            "RAY_ADDRESS": self.ray_address,
            "ORCH_ADDR": ",".join(each.address.url for each in self.orchestrators),
            "ORCH_SECRET": self.orch_secret.get_secret_value(),
            "ORCH_FINGERPRINT": ",".join(each.fingerprint or "" for each in self.orchestrators),
            "ADVERTISE_VERSION": self.advertise_version,
            "DEADLINE_S": str(self.deadlines),
            "GRACE_S": str(self.grace_s),
            "STATE_DIR": str(self.state_dir),
            "STATE_LISTEN": host_port(self.state_listen) if self.state_listen else "none",
            "REGISTER": self.register,
            "RUNNER_LISTEN": host_port(self.runner_listen),
            "RUNNER_URL": self.runner_url,
        }
        return {ENVIRONMENT_PREFIX + name: value for name, value in values.items()}


def add_bridge_flags(parser: argparse.ArgumentParser, *, may_start: bool = False) -> None:
    """Adds what `bridge_settings` reads; `may_start` as for `add_ray_address_flag`."""
    add_ray_address_flag(parser, may_start=may_start)
    add_flag(parser, "--orch-addr", help="HOST:PORT of the orchestrator; of several, with commas")
    add_secret_flag(parser)
    add_flag(
        parser,
        "--orch-fingerprint",
        help="SHA-256 of its certificate, or one each in the same order; without, the one it "
        "presents is trusted",
    )
    add_flag(
        parser,
        "--advertise-version",
        default=NEWEST_KNOWN_VERSION,
        help="go-livepeer version to register as; must not be older than the orchestrator's",
    )
    add_flag(
        parser,
        "--state-dir",
        default="~/.livepeer-ray",
        help="directory for the journal of unanswered jobs, kept across restarts",
    )
    add_flag(
        parser,
        "--deadline-s",
        default=f"{DEADLINE_S:g}",
        help="seconds for every job; other ones for a pipeline as in 540,llm=120",
    )
    add_flag(
        parser, "--grace-s", default=f"{GRACE_S:g}", help="seconds for running jobs at the end"
    )
    add_state_listen_flag(parser)
    add_register_flag(parser)
    add_runner_flags(parser)


def add_secret_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--orch-secret`."""
    add_flag(
        parser,
        "--orch-secret",
        help="its -orchSecret, or a file with it; better a file or the variable than the "
        "command line, which every user of the machine can read",
    )


def add_register_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--register`."""
    add_flag(
        parser,
        "--register",
        default=Register.WORKER,
        help="worker (gRPC), live-runner (heartbeats), both, or static-runner (the orchestrator's "
        "-liveRunnerConfig names us)",
    )


def add_runner_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--runner-listen` and `--runner-url`."""
    add_flag(
        parser,
        "--runner-listen",
        default=RUNNER_LISTEN,
        help="HOST:PORT on which a live runner takes the orchestrator's requests",
    )
    add_flag(
        parser,
        "--runner-url",
        help="how the orchestrator reaches that, if not as http://RUNNER_LISTEN",
    )


def bridge_settings(arguments: argparse.Namespace) -> BridgeSettings:
    """Reads what `add_bridge_flags` and `add_models_flags` added.

    Raises:
        ConfigError: a flag is missing or makes no sense; the text names it.
    """
    if not arguments.orch_addr:
        raise ConfigError("--orch-addr is missing: HOST:PORT of the orchestrator")
    return BridgeSettings(
        ai_models=arguments.ai_models,
        ray_address=arguments.ray_address,
        orchestrators=_orchestrators(arguments.orch_addr, arguments.orch_fingerprint or ""),
        orch_secret=read_secret(arguments.orch_secret),
        advertise_version=_version(arguments.advertise_version),
        deadlines=Deadlines.parse(arguments.deadline_s),
        grace_s=seconds("--grace-s", arguments.grace_s, minimum_s=0),
        state_listen=state_listen(arguments.state_listen),
        state_dir=directory("--state-dir", arguments.state_dir),
        register=register(arguments.register),
        runner_listen=listen_address("--runner-listen", arguments.runner_listen),
        runner_url=runner_url(arguments.runner_url, arguments.runner_listen),
    )


def runner_url(value: str | None, listen: str) -> str:
    """Reads `--runner-url`, without a final slash.

    Raises:
        ConfigError: it is not an absolute http(s) url, or is missing where the address that is
            listened on says nothing to others.
    """
    host, port = listen_address("--runner-listen", listen)
    if not value:
        if host in ("0.0.0.0", "::"):
            raise ConfigError(
                f"--runner-url is missing: orchestrators cannot reach {host}; give the address "
                f"that they can, such as http://10.0.0.5:{port}"
            )
        return f"http://{host_port((host, port))}"
    try:
        parts = urlsplit(value)
        # Reading the port checks it.
        sane = bool(parts.hostname) and parts.port != 0
        sane = sane and parts.scheme in ("http", "https") and not parts.query + parts.fragment
    except ValueError:
        sane = False
    if not sane:
        raise ConfigError(f"--runner-url: want http(s)://HOST:PORT, got {value!r}")
    return value.rstrip("/")


def register(value: str) -> Register:
    """Reads `--register`.

    Raises:
        ConfigError: it is none of the ways that there are.
    """
    try:
        return Register(value)
    except ValueError:
        raise ConfigError(f"--register: want {', '.join(Register)}, got {value!r}") from None


def read_secret(value: str | None) -> SecretStr:
    """Returns the secret itself or, if the value names a file, what is in that file.

    Raises:
        ConfigError: there is none. The text never holds the value.
    """
    if not value:
        raise ConfigError("--orch-secret is missing: the orchestrator's -orchSecret, or its file")
    if path := existing_file(value):
        try:
            value = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"--orch-secret: the file cannot be read: {type(error).__name__}"
            ) from None
    if not value or not value.isprintable():
        raise ConfigError("--orch-secret: the secret is empty or not one line of text")
    return SecretStr(value)


def _orchestrators(addresses: str, fingerprints: str) -> tuple[Orchestrator, ...]:
    parsed = [Address.parse(text.strip()) for text in addresses.split(",")]
    if len(set(parsed)) < len(parsed):
        raise ConfigError(f"--orch-addr: {addresses!r} names one of them twice")
    pins = fingerprints.split(",") if fingerprints else [""] * len(parsed)
    if len(pins) != len(parsed):
        raise ConfigError(
            f"--orch-fingerprint: {len(pins)} for {len(parsed)} orchestrators; want one each, "
            "in the order of --orch-addr, or none"
        )
    for address, pin in zip(parsed, pins, strict=True):
        if pin.strip() and not address.tls:
            raise ConfigError(
                f"--orch-fingerprint: {address} is plaintext and has no certificate; leave it "
                "out, or say https://"
            )
    return tuple(
        Orchestrator(address=address, fingerprint=_fingerprint(pin.strip()))
        for address, pin in zip(parsed, pins, strict=True)
    )


def _fingerprint(value: str) -> str | None:
    if not value:
        return None
    digits = value.replace(":", "").lower()
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise ConfigError(f"--orch-fingerprint: want 64 hex digits (SHA-256), got {value!r}")
    return digits


def _version(value: str) -> str:
    if not re.fullmatch(r"v?\d+\.\d+\.\d+([-+].*)?", value):
        raise ConfigError(f"--advertise-version: want a version such as 0.9.1, got {value!r}")
    return value.removeprefix("v")
