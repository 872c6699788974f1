"""The registry of live runners, as go-livepeer's own answered when it was run beside it."""

import json
from typing import Any

import pytest

from cluster.loopback.live_runner_routes import _joined
from cluster.loopback.live_runners import LiveRunners, RunnerError

SECRET = "s3cret"


class Clock:
    """Stands still unless the test moves it."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Registry:
    """A registry and what is said to it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.runners = LiveRunners(secret=SECRET, now=self.clock)

    def beat(self, *, authorization: str = SECRET, **fields: Any) -> dict[str, Any]:
        body = {"app": "llm/org/a", "runner_url": "http://h:1/a", "mode": "single-shot", **fields}
        return self.runners.heartbeat(
            json.dumps(body).encode(), authorization=authorization, orchestrator="https://o"
        )

    def refused(self, **fields: Any) -> tuple[int, str]:
        with pytest.raises(RunnerError) as error:
            self.beat(**fields)
        return error.value.status, str(error.value)

    def known(self) -> list[dict[str, Any]]:
        return self.runners.discovery(orchestrator="https://o")


def test_who_has_expired_keeps_its_id_until_it_is_swept_away() -> None:
    registry = Registry()
    registry.clock.now_s += 2
    assert registry.beat(runner_id="one")["heartbeat_ttl"] == "20s"
    registry.clock.now_s += 20.5
    assert registry.known() == []
    assert registry.refused(runner_id="one") == (404, "runner not found")
    registry.beat()
    registry.clock.now_s += 2.5
    assert registry.beat(runner_id="one")["runner_id"] == "one"


def test_discovery_leaves_out_what_was_not_said() -> None:
    registry = Registry()
    runner_id = registry.beat(capacity=2)["runner_id"]
    shown = {"url", "app", "mode", "capacity", "capacity_used", "capacity_available"}
    assert set(registry.known()[0]) == shown
    registry.beat(version="1", metadata="m", gpu={"name": "H100"})
    assert set(registry.known()[1]) == shown | {"version", "metadata", "gpu"}
    with registry.runners.session(runner_id), registry.runners.session(runner_id):
        secret = registry.runners._runners[runner_id].secret
        registry.beat(runner_id=runner_id, authorization=secret, capacity=1)
        assert registry.known()[0]["capacity_available"] == -1


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"capacity": -1}, "capacity must be >= 0"),
        ({"capacity": "1"}, "Input should be a valid integer"),
        ({"runner_url": "nonsense"}, "invalid runner_url"),
    ],
)
def test_what_is_wrong_is_refused(fields: dict[str, Any], why: str) -> None:
    assert Registry().refused(**fields) == (400, why)


def test_an_id_is_trimmed() -> None:
    assert Registry().beat(runner_id=" mine ")["runner_id"] == "mine"


@pytest.mark.parametrize(
    ("path", "query", "joined"),
    [
        ("llm", "", "http://h:1/secret/llm/org/a/llm"),
        ("llm/", "a=%2f", "http://h:1/secret/llm/org/a/llm/?a=%2f"),
        ("../../x y", "", "http://h:1/secret/llm/x%20y"),
        ("../../../../../x", "", "http://h:1/x"),
    ],
)
def test_paths_are_joined_as_go_does_it(path: str, query: str, joined: str) -> None:
    assert str(_joined("http://h:1/secret/llm/org/a", path, query)) == joined
