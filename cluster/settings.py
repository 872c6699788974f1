"""Flags and environment, read once; what the bridge alone needs is in `cluster.bridge_settings`.

Each flag `--some-flag` has an environment variable `LIVEPEER_RAY_SOME_FLAG`; the flag wins.
"""

import argparse
import os
from enum import StrEnum
from pathlib import Path

from cluster.errors import ConfigError

ENVIRONMENT_PREFIX = "LIVEPEER_RAY_"

TOKENS_VARIABLE = f"{ENVIRONMENT_PREFIX}HTTP_TOKENS"
"""The bearer tokens of the HTTP API."""

OFF = ("", "0", "false", "no", "off")
"""What a variable says that is a switch and is off."""

EXIT_CONFIG = 2
"""Something that the operator has to change: flags, environment, aiModels.json."""

EXIT_INVALID_SECRET = 3

EXIT_NO_CLUSTER = 4
"""No Ray cluster; it may be restarting, so trying again can help."""

DEFAULT_AI_MODELS, DEFAULT_MODELS_DIR = "~/.lpData/aiModels.json", "~/.lpData/models"
"""Where go-livepeer has both, so that an operator's existing file and downloads are found."""

DRAIN_TIMEOUT_S = 600.0
"""As long as a replica that leaves is given for its jobs (deployments.app)."""

STATE_LISTEN = "127.0.0.1:4935"


class Device(StrEnum):
    """Where models run."""

    AUTO = "auto"
    GPU = "gpu"
    CPU = "cpu"

    def gpus(self, available: float) -> bool:
        """Whether to ask for GPUs where so many are there."""
        return available > 0 if self is Device.AUTO else self is Device.GPU


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
        default=DEFAULT_AI_MODELS,
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


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--device`."""
    add_flag(
        parser,
        "--device",
        default="auto",
        help="gpu, cpu, or auto: gpu where there is one",
    )


def add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--ai-models-dir`, `--device` and `--autoscaler-gpus`: how models are served."""
    add_models_dir_flag(parser)
    add_device_flag(parser)
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
        default=os.environ.get(ENVIRONMENT_PREFIX + "LOG_JSON", "").lower() not in OFF,
        help=f"one JSON object a log line [{ENVIRONMENT_PREFIX}LOG_JSON]",
    )


def add_ray_address_flag(parser: argparse.ArgumentParser, *, may_start: bool = False) -> None:
    """Adds `--ray-address`; `may_start` for commands that start a cluster where there is none."""
    add_flag(
        parser,
        "--ray-address",
        default="auto",
        help="HOST:PORT of the cluster, or auto for the one on this machine"
        + (", which is started if there is none; local for a new one" if may_start else ""),
    )


def add_state_listen_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--state-listen`."""
    add_flag(
        parser,
        "--state-listen",
        default=STATE_LISTEN,
        help="HOST:PORT on which the bridge tells its state, or none",
    )


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
    return directory("--ai-models-dir", value)


def directory(flag: str, value: str) -> Path:
    """A directory, absolute.

    Raises:
        ConfigError: it starts with the home of a user that does not exist.
    """
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


def existing_file(value: str) -> Path | None:
    """The file of that name; None where the value is no path, or one to nothing."""
    try:
        path = Path(value).expanduser()
        return path if path.is_file() else None
    except (OSError, RuntimeError, ValueError):
        return None


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


def without_secrets() -> dict[str, str]:
    """This process' environment for another one, which is given those secrets that it needs."""
    private = (f"{ENVIRONMENT_PREFIX}ORCH_", TOKENS_VARIABLE)
    return {name: value for name, value in os.environ.items() if not name.startswith(private)}
