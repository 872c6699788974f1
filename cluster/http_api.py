"""The HTTP API as an operator sets it: where it listens and which tokens are good.

What it does is `deployments.ingress`; here is what the Serve config says of it. The tokens
themselves stay where they are read: the config, which everybody with access to the cluster can
see, holds their SHA-256.
"""

import argparse
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import ConfigError
from cluster.placement import Served
from cluster.settings import add_flag, existing_file, listen_address
from deployments.ingress.config import (
    APP,
    DEPLOYMENT,
    IMPORT_PATH,
    IngressConfig,
    ServedModel,
    Token,
)

LISTEN = "127.0.0.1:8000"
"""ai-runner's port. Only this machine, for there is no token yet."""

KEEP_ALIVE_S = 120
"""For a connection without a request. go-livepeer keeps one for 90 s: it closes first, and never
finds a connection closed under a request that it cannot send again."""

MIN_TOKEN_CHARS = 16
"""Shorter ones could be guessed from their SHA-256."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HTTPSettings:
    """An HTTP API."""

    host: str
    port: int
    tokens: tuple[Token, ...] = field(default=())
    """Empty on a loopback address only."""


def add_http_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--http` and `--http-tokens`."""
    add_flag(
        parser,
        "--http",
        default=LISTEN,
        help="HOST:PORT of the HTTP API on the head node, or none",
    )
    add_flag(
        parser,
        "--http-tokens",
        help="a bearer token for it, or a file: one a line, for all models or for those "
        "that follow it as pipeline/model_id",
    )


def http_settings(arguments: argparse.Namespace) -> HTTPSettings | None:
    """Reads what `add_http_flags` added; None for no HTTP API.

    Raises:
        ConfigError: it would be open to the network without a token, or a flag makes no sense.
    """
    if arguments.http == "none":
        return None
    host, port = listen_address("--http", arguments.http)
    tokens = _tokens(arguments.http_tokens) if arguments.http_tokens else ()
    if not tokens and not _is_loopback(host):
        raise ConfigError(f"--http {arguments.http} is open to the network: it needs --http-tokens")
    return HTTPSettings(host=host, port=port, tokens=tokens)


def is_taken(host: str, port: int) -> bool:
    """Whether somebody else listens there, on this machine.

    Serve itself would not notice: its proxies share their port with whoever allows it, and then
    each gets some of the connections.
    """
    try:
        with socket.create_server((host, port), family=_family(host)):
            return False
    except OSError:
        return True


def http_options(http: HTTPSettings | None) -> dict[str, Any]:
    """The Serve config's settings of its proxies."""
    if http is None:
        # Jobs come through deployment handles, so that no HTTP proxy has to run.
        return {"proxy_location": "Disabled"}
    return {
        "proxy_location": "HeadOnly",
        "http_options": {
            "host": http.host,
            "port": http.port,
            "keep_alive_timeout_s": KEEP_ALIVE_S,
        },
    }


def ingress(http: HTTPSettings, served: Sequence[tuple[str, Served]]) -> dict[str, Any]:
    """The Serve config's application of the HTTP API.

    Models stand in its `user_config` alone: whatever changes there, it goes on running.

    Args:
        http: its settings.
        served: the models and the names of their applications.
    """
    config = IngressConfig(
        models=tuple(
            ServedModel(
                pipeline=each.model.pipeline,
                model_id=each.model.model_id,
                app=app,
                slots=each.model.ray.max_ongoing_requests,
                cold=each.min_replicas == 0,
            )
            for app, each in served
        ),
        tokens=http.tokens,
    )
    return {
        "name": APP,
        "route_prefix": "/",
        "import_path": IMPORT_PATH,
        "deployments": [
            {
                "name": DEPLOYMENT,
                "num_replicas": 1,
                # Beside Serve's proxy: one machine less between client and model.
                "ray_actor_options": {
                    "num_cpus": 0,
                    "resources": {"node:__internal_head__": 0.001},
                },
                "user_config": config.model_dump(mode="json"),
            }
        ],
    }


def _tokens(value: str) -> tuple[Token, ...]:
    """Reads one token, or a file of them. No message holds one."""
    path = existing_file(value)
    if path is None:
        if value.startswith(("/", "~", "./", "../")):
            # A path that became the token would let anybody in who guesses it.
            raise ConfigError(
                "--http-tokens: there is no such file; a token itself begins with a letter or digit"
            )
        return (_token([value], "--http-tokens"),)
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--http-tokens: the file cannot be read: {type(error).__name__}"
        ) from None
    tokens = tuple(
        _token(words, f"--http-tokens: line {number}")
        for number, line in enumerate(lines, 1)
        if (words := line.partition("#")[0].split())
    )
    if not tokens:
        raise ConfigError("--http-tokens: the file has no token")
    return tokens


def _token(words: Sequence[str], where: str) -> Token:
    token, *models = words
    if len(token) < MIN_TOKEN_CHARS or not token.isprintable():
        raise ConfigError(
            f"{where}: want at least {MIN_TOKEN_CHARS} characters, such as `openssl rand -hex 32` "
            "prints"
        )
    for model in models:
        if "/" not in model:
            raise ConfigError(f"{where}: want pipeline/model_id, got {model!r}")
    return Token.of(token, models=tuple(models))


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
