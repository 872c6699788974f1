"""The file for orchestrators that look after live runners themselves."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from cluster.ai_models import ModelKey, load_ai_models
from cluster.bridge.runner_urls import runner_url
from cluster.cli import main
from cluster.errors import AIModelsError

SECRET = "hunter2-and-more"
PRICE = {"price": 0.01, "unit": "fixed"}
ENTRIES: list[dict[str, Any]] = [
    {
        "pipeline": "text-to-image",
        "model_id": "org/sd",
        "warm": True,
        "capacity": 2,
        "ray": {"max_ongoing_requests": 4, "live_runner_price": PRICE},
    },
    {"pipeline": "llm", "model_id": "org/chat", "url": "http://a:8000", "capacity": 3},
    {"pipeline": "llm", "model_id": "org/chat", "url": "http://b:8000", "capacity": 2},
]


def config(path: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> list[dict[str, Any]]:
    path.write_text(json.dumps(ENTRIES))
    arguments = ["live-runner-config", "--ai-models", str(path), "--orch-secret", SECRET, *flags]
    assert main(arguments) == 0
    runners: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["runners"]
    return runners


def test_each_model_is_one_runner_with_all_its_slots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, chat = config(tmp_path / "f", capsys, "--runner-url", "https://runners.example/ai/")
    assert image["app"] == image["label"] == "text-to-image/org/sd"
    assert (image["mode"], image["capacity"], chat["capacity"]) == ("single-shot", 8, 5)
    assert image["price_info"] == {"price": 0.01, "currency": "usd", "unit": "fixed"}
    assert "price_info" not in chat
    # go-livepeer joins the two.
    assert image["health_url"] == "/health"
    assert image["runner_url"].startswith("https://runners.example/ai/")
    assert image["runner_url"].endswith("/text-to-image/org/sd")


def test_the_address_is_the_bridges_and_shows_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, chat = config(tmp_path / "f", capsys, "--runner-listen", "10.0.0.5:4936")
    again, _ = config(tmp_path / "f", capsys, "--runner-listen", "10.0.0.5:4936")
    assert image["runner_url"] == again["runner_url"]
    path, other = (each["runner_url"].split("/")[3] for each in (image, chat))
    assert path != other, "who may ask one model may not ask the other"
    assert len(path) == len(other) == 32
    assert SECRET not in json.dumps([image, chat])


def test_another_secret_is_another_address() -> None:
    key = ModelKey("llm", "org/chat")
    urls = {runner_url("http://h:1", SecretStr(secret), key) for secret in ("one", "two", "one")}
    assert len(urls) == 2


@pytest.mark.parametrize(
    ("price", "words"),
    [
        ({"price": 0}, "ray.live_runner_price.price: "),
        ({"price": 1, "unit": "minute"}, "ray.live_runner_price.unit: "),
        ({"price": 1, "currency": "eur"}, "ray.live_runner_price.currency: "),
        ({"unit": "fixed"}, "ray.live_runner_price.price: "),
    ],
)
def test_prices_are_checked_as_the_orchestrator_does(
    tmp_path: Path, price: dict[str, Any], words: str
) -> None:
    file = tmp_path / "aiModels.json"
    file.write_text(json.dumps([{**ENTRIES[0], "ray": {"live_runner_price": price}}]))
    with pytest.raises(AIModelsError) as error:
        load_ai_models(file)
    assert words in str(error.value)
