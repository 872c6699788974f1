"""Flags and environment, read once into frozen settings.

Each flag `--some-flag` has an environment variable `LIVEPEER_RAY_SOME_FLAG`; the flag wins.
"""

import argparse
import os
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

from cluster.bridge.address import Address
from cluster.bridge.deadlines import DEADLINE_S, Deadlines
from cluster.errors import ConfigError

ENVIRONMENT_PREFIX = "LIVEPEER_RAY_"

EXIT_CONFIG = 2
"""Something that the operator has to change: flags, environment, aiModels.json."""

EXIT_INVALID_SECRET = 3

EXIT_NO_CLUSTER = 4
"""No Ray cluster; it may be restarting, so trying again can help."""

DEFAULT_MODELS_DIR = "~/.lpData/models"
"""Where go-livepeer keeps models, so that an operator's existing downloads are found."""

NEWEST_KNOWN_VERSION = "0.9.1"
"""An orchestrator turns away workers older than itself; go-livepeer's newest release we know."""

GRACE_S = 120.0

DRAIN_TIMEOUT_S = 600.0
"""As long as a replica that leaves is given for its jobs (deployments.app)."""

STATE_LISTEN = "127.0.0.1:4935"

RUNNER_LISTEN = "127.0.0.1:4936"


class Device(StrEnum):
    """Where models run."""

    AUTO = "auto"
    GPU = "gpu"
    CPU = "cpu"

    def gpus(self, available: float) -> bool:
        """Whether to ask for GPUs where so many are there."""
        return available > 0 if self is Device.AUTO else self is Device.GPU


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


def add_flag(
    parser: argparse.ArgumentParser,
    flag: str,
    *,
    default: str | None = None,
    help: str,  # noqa: A002 - argparse's own word
) -> None:
    """Adds a flag whose default comes from the environment."""
    variable = ENVIRONMENT_PREFIX + flag.removeprefix("--").replace("-", "_").upper()
    shown = f" (default: {default})" if default else ""
    parser.add_argument(
        flag,
        default=os.environ.get(variable, default),
        metavar=flag.rsplit("-", 1)[-1].upper(),
        help=f"{help}{shown} [{variable}]".replace("%", "%%"),
    )


def add_models_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--ai-models`: which models."""
    add_flag(
        parser,
        "--ai-models",
        default="~/.lpData/aiModels.json",
        help="aiModels.json, or pipeline:model_id:warm,...",
    )


def add_models_dir_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--ai-models-dir`."""
    add_flag(
        parser,
        "--ai-models-dir",
        default=DEFAULT_MODELS_DIR,
        help="Hugging Face cache with the models, at the same path on every node",
    )


def add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--ai-models-dir`, `--device` and `--autoscaler-gpus`: how models are served."""
    add_models_dir_flag(parser)
    add_flag(
        parser,
        "--device",
        default="auto",
        help="gpu, cpu, or auto: gpu where there is one",
    )
    add_flag(
        parser,
        "--autoscaler-gpus",
        help="the GPU machines when Ray's autoscaler has added all it may, such as 4x1,2x8:H100; "
        "not needed where `ray up` made the cluster",
    )


def add_log_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--log-json`."""
    parser.add_argument(
        "--log-json",
        action="store_true",
        default=os.environ.get(ENVIRONMENT_PREFIX + "LOG_JSON", "0") not in ("", "0", "false"),
        help=f"one JSON object a log line [{ENVIRONMENT_PREFIX}LOG_JSON]",
    )


def add_ray_address_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--ray-address`."""
    add_flag(
        parser,
        "--ray-address",
        default="auto",
        help="HOST:PORT of the cluster, or auto for the one on this machine",
    )


def add_state_listen_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--state-listen`."""
    add_flag(
        parser,
        "--state-listen",
        default=STATE_LISTEN,
        help="HOST:PORT on which the bridge tells its state, or none",
    )


def add_bridge_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what `bridge_settings` reads."""
    add_ray_address_flag(parser)
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
        state_dir=_directory("--state-dir", arguments.state_dir),
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
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise ConfigError(f"--runner-url: want http(s)://HOST:PORT, got {value!r}")
    return value.rstrip("/")


def state_listen(value: str) -> tuple[str, int] | None:
    """Reads `--state-listen`.

    Raises:
        ConfigError: it is neither none nor an address.
    """
    return None if value == "none" else listen_address("--state-listen", value)


def listen_address(flag: str, value: str) -> tuple[str, int]:
    """Reads `HOST:PORT` or `[V6]:PORT`.

    Raises:
        ConfigError: for an address that nothing can listen on.
    """
    host, _, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{flag} {value!r} is not HOST:PORT")
    return host, int(port)


def host_port(address: tuple[str, int]) -> str:
    """Writes what `listen_address` reads."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def models_dir(value: str) -> Path:
    """The models directory, absolute.

    Raises:
        ConfigError: it starts with the home of a user that does not exist.
    """
    return _directory("--ai-models-dir", value)


def _directory(flag: str, value: str) -> Path:
    try:
        return Path(value).expanduser().absolute()
    except RuntimeError as error:
        raise ConfigError(f"{flag}: {value!r}: {error}") from None


def device(value: str) -> Device:
    """Reads `--device`.

    Raises:
        ConfigError: it is neither gpu, cpu nor auto.
    """
    try:
        return Device(value)
    except ValueError:
        raise ConfigError(f"--device: want gpu, cpu or auto, got {value!r}") from None


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


def existing_file(value: str) -> Path | None:
    """The file of that name; None where the value is no path, or one to nothing."""
    try:
        path = Path(value).expanduser()
        return path if path.is_file() else None
    except (OSError, RuntimeError, ValueError):
        return None


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


def seconds(flag: str, value: str, *, minimum_s: float) -> float:
    """Reads a duration.

    Raises:
        ConfigError: it is no number, less than the minimum, or over a day.
    """
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not minimum_s <= number < 86_400:
        raise ConfigError(f"{flag}: want seconds, at least {minimum_s:g}, got {value!r}")
    return number
