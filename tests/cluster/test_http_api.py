"""The HTTP API's flags, and what the Serve config says of it."""

import argparse
import socket
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from ray.serve.schema import ServeDeploySchema

from cluster.ai_models import load_ai_models
from cluster.errors import ConfigError
from cluster.http_api import HTTPSettings, add_http_flags, http_settings, is_taken
from cluster.placement import UNBOUNDED, place
from cluster.serve_config import serve_config
from deployments.ingress.config import APP, IngressConfig, Token

TOKEN, OTHER = "the-token-for-all-models", "the-token-for-model-a"
MODELS = "text-to-image:org/a:true,llm:org/b:false"


def settings(*flags: str) -> HTTPSettings | None:
    parser = argparse.ArgumentParser()
    add_http_flags(parser)
    return http_settings(parser.parse_args(flags))


def rendered(*flags: str, models: str = MODELS) -> dict[str, Any]:
    placement = place(load_ai_models(models).models, supply=UNBOUNDED)
    return serve_config(placement, models_dir=Path("/models"), gpus=True, http=settings(*flags))


def test_by_default_it_is_for_this_machine() -> None:
    assert settings() == HTTPSettings(host="127.0.0.1", port=8000)
    config = rendered()
    assert config["proxy_location"] == "HeadOnly"
    assert config["http_options"]["host"] == "127.0.0.1"


def test_none_of_it() -> None:
    assert settings("--http", "none") is None
    config = rendered("--http", "none")
    assert config["proxy_location"] == "Disabled"
    assert "http_options" not in config
    assert APP not in [application["name"] for application in config["applications"]]


@pytest.mark.parametrize("value", ["/run/secrets/no-such-tokens", "~/no-such-tokens", "./tokens"])
def test_a_path_to_nothing_is_no_token(value: str) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        settings("--http", "0.0.0.0:8000", "--http-tokens", value)


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "10.0.0.7", "gpu.example"])
def test_open_to_the_network_it_needs_a_token(host: str) -> None:
    with pytest.raises(ConfigError, match="needs --http-tokens"):
        settings("--http", f"{host}:8000")
    assert settings("--http", f"{host}:8000", "--http-tokens", TOKEN)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "127.9.9.9"])
def test_on_this_machine_it_needs_none(host: str) -> None:
    assert settings("--http", f"{host}:8000")


@pytest.mark.parametrize("flags", [("--http", "8000"), ("--http", "127.0.0.1:http")])
def test_an_address_is_an_address(flags: Sequence[str]) -> None:
    with pytest.raises(ConfigError, match="--http"):
        settings(*flags)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_that_somebody_listens_on_is_seen(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, reuse_port=True) as server:
        port = server.getsockname()[1]
        assert is_taken(host, port)
    assert not is_taken(host, port)


def test_a_token_can_be_for_some_models(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# whose\n{TOKEN}\n\n{OTHER} text-to-image/org/a llm/org/b  # theirs\n")
    read = settings("--http-tokens", str(file))
    assert read
    assert read.tokens == (
        Token(sha256=sha256(TOKEN.encode()).hexdigest()),
        Token.of(OTHER, models=("text-to-image/org/a", "llm/org/b")),
    )


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "the file has no token"),
        ("# nothing\n", "the file has no token"),
        (f"{TOKEN}\nshort\n", "line 2: want at least 16 characters"),
        (f"{TOKEN} org\n", "line 1: want pipeline/model_id, got 'org'"),
    ],
)
def test_a_file_of_tokens_is_checked(tmp_path: Path, text: str, wrong: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(text)
    with pytest.raises(ConfigError, match=wrong) as raised:
        settings("--http-tokens", str(file))
    assert TOKEN not in str(raised.value)


def test_serve_takes_the_config_and_no_token_is_in_it() -> None:
    config = rendered("--http", "0.0.0.0:8123", "--http-tokens", TOKEN)
    schema = ServeDeploySchema.model_validate(config)
    assert (schema.http_options.host, schema.http_options.port) == ("0.0.0.0", 8123)
    assert TOKEN not in str(config)


def test_models_stand_in_what_a_running_ingress_takes_anew() -> None:
    one, two = (
        rendered(models=models)["applications"][-1] for models in (MODELS, "llm:org/c:true")
    )
    configs = [IngressConfig(**each["deployments"][0].pop("user_config")) for each in (one, two)]
    # Serve restarts what differs in anything else.
    assert one == two
    names = [{app["name"] for app in rendered(models=MODELS)["applications"]}]
    assert {model.app for model in configs[0].models} == names[0] - {APP}
    assert [(str(m.key), m.slots, m.cold) for m in configs[0].models] == [
        ("text-to-image org/a", 1, False),
        ("llm org/b", 16, True),
    ]
    assert [str(model.key) for model in configs[1].models] == ["llm org/c"]
