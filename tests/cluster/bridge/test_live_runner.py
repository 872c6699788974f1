"""Live runners at a real loopback orchestrator: announced, changed, forgotten, refused."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pydantic import SecretStr

from cluster.ai_models import ModelKey
from cluster.bridge.address import Address
from cluster.bridge.heartbeats import Heartbeats
from cluster.bridge.live_runner import LiveRunnerRegistration
from cluster.capacity import Capacity, ModelCapacity
from cluster.errors import InvalidSecret, OrchestratorUnreachable
from cluster.loopback.live_runners import LiveRunners
from cluster.loopback.server import LoopbackOrchestrator

SECRET = "s3cret"
SD, LLM = ModelKey("text-to-image", "org/sd"), ModelKey("llm", "org/chat")
HEARTBEAT_S = 0.5
"""A runner expires after four: a machine that stands still for longer would look like one."""


def capacity(**slots: int) -> Capacity:
    keys = {"sd": SD, "llm": LLM}
    return Capacity(
        models={
            keys[name]: ModelCapacity(slots=number, warm=True) for name, number in slots.items()
        }
    )


def registration(orchestrator: LoopbackOrchestrator, **options: Any) -> LiveRunnerRegistration:
    door = LiveRunnerRegistration(
        **{
            "address": Address.parse(orchestrator.url),
            "secret": SecretStr(SECRET),
            "runner_url": lambda key: f"http://127.0.0.1:1/{key.pipeline}/{key.model_id}",
            **options,
        }
    )
    door.configure({SD: None, LLM: None})
    return door


@pytest.fixture
async def orchestrator() -> AsyncIterator[LoopbackOrchestrator]:
    async with LoopbackOrchestrator(secret=SECRET, heartbeat_s=HEARTBEAT_S) as running:
        yield running


@pytest.fixture
async def patient() -> AsyncIterator[LoopbackOrchestrator]:
    """Where nothing expires: what is told there is told at once, or never."""
    async with LoopbackOrchestrator(secret=SECRET, heartbeat_s=60.0) as running:
        yield running


@contextlib.asynccontextmanager
async def working(registration: LiveRunnerRegistration) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(registration.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def known(runners: LiveRunners) -> dict[str, int]:
    return {one["app"]: one["capacity"] for one in runners.discovery(orchestrator="https://o")}


def apps(capacity: Capacity) -> dict[str, int]:
    return {f"{key.pipeline}/{key.model_id}": it.slots for key, it in capacity.models.items()}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_each_model_is_a_runner_and_changes_are_told_at_once(
    orchestrator: LoopbackOrchestrator,
) -> None:
    door = registration(orchestrator)
    seen = orchestrator.live_runners
    door.announce(capacity(sd=2, llm=16))
    async with working(door):
        await until(lambda: known(seen) == {"text-to-image/org/sd": 2, "llm/org/chat": 16})
        await until(lambda: door.state.advertised == capacity(sd=2, llm=16))
        assert door.state.registered
        door.announce(capacity(sd=3))
        await until(lambda: known(seen) == {"text-to-image/org/sd": 3})
        door.announce(Capacity())
        await until(lambda: known(seen) == {})
        door.announce(capacity(llm=1))
        await until(lambda: known(seen) == {"llm/org/chat": 1})
    assert known(seen) == {}, "all have said farewell"


async def test_heartbeats_keep_a_runner_alive_and_its_silence_ends_it(
    orchestrator: LoopbackOrchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = registration(orchestrator)
    door.announce(capacity(sd=1))
    async with working(door):
        await until(lambda: bool(known(orchestrator.live_runners)))
        # Longer than it would last without.
        await asyncio.sleep(HEARTBEAT_S * 6)
        assert known(orchestrator.live_runners) == {"text-to-image/org/sd": 1}
        # A bridge that was killed says no farewell.
        monkeypatch.setattr("cluster.bridge.heartbeats.Heartbeats.leave", _nothing)
    assert known(orchestrator.live_runners)
    await until(lambda: not known(orchestrator.live_runners))


async def _nothing(*_: Any) -> None: ...


async def test_an_orchestrator_that_forgot_it_is_told_again(
    orchestrator: LoopbackOrchestrator,
) -> None:
    door = registration(orchestrator)
    door.announce(capacity(sd=1, llm=2))
    async with working(door):
        await until(lambda: len(known(orchestrator.live_runners)) == 2)
        orchestrator.live_runners.forget_all()
        await until(lambda: len(known(orchestrator.live_runners)) == 2)


async def test_one_that_expired_is_back_before_the_orchestrator_swept_it_away(
    orchestrator: LoopbackOrchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LiveRunners, "_sweep", lambda _: None)
    door = registration(orchestrator)
    door.announce(capacity(sd=1))
    async with working(door):
        await until(lambda: bool(known(orchestrator.live_runners)))
        (first,) = orchestrator.live_runners._runners.values()
        first.last_heartbeat -= 3600
        assert not known(orchestrator.live_runners)
        await until(lambda: bool(known(orchestrator.live_runners)))
        assert not door.state.detail


async def test_a_registration_whose_answer_was_lost_is_made_again(
    orchestrator: LoopbackOrchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = Heartbeats._post
    lost: list[int] = []

    async def lossy(
        runner: Heartbeats, http: Any, path: str, *, secret: SecretStr, **options: Any
    ) -> tuple[int, bytes]:
        answer = await post(runner, http, path, secret=secret, **options)
        if secret.get_secret_value() == SECRET and runner._runner_id and not lost:
            lost.append(answer[0])
            raise OrchestratorUnreachable("the line broke")
        return answer

    monkeypatch.setattr(Heartbeats, "_post", lossy)
    door = registration(orchestrator)
    door.announce(capacity(sd=1))
    async with working(door) as task:
        await until(lambda: door.state.registered)
        orchestrator.live_runners.forget_all()
        await until(lambda: lost == [200])
        await until(lambda: door.state.registered and not door.state.detail)
        assert not task.done()


async def test_a_restarted_orchestrator_with_another_certificate_is_told_again() -> None:
    async with LoopbackOrchestrator(secret=SECRET, heartbeat_s=HEARTBEAT_S) as first:
        door = registration(first)
        door.announce(capacity(sd=1))
        task = asyncio.create_task(door.run())
        await until(lambda: bool(known(first.live_runners)))
        port, before = first.port, door.state.certificate
    async with LoopbackOrchestrator(secret=SECRET, port=port, heartbeat_s=HEARTBEAT_S) as second:
        await until(lambda: bool(known(second.live_runners)))
        assert door.state.certificate == second.fingerprint != before
        await until(lambda: not door.state.detail)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not known(second.live_runners)


async def test_a_wrong_secret_is_fatal(orchestrator: LoopbackOrchestrator) -> None:
    door = registration(orchestrator, secret=SecretStr("wrong"))
    door.announce(capacity(sd=1))
    with pytest.raises(InvalidSecret, match="it must be the -orchSecret"):
        async with asyncio.timeout(20):
            await door.run()


async def test_what_is_refused_is_said_and_disturbs_no_other(
    orchestrator: LoopbackOrchestrator,
) -> None:
    urls = {SD: "nonsense", LLM: "http://127.0.0.1:1/llm"}
    door = registration(orchestrator, runner_url=urls.__getitem__)
    door.announce(capacity(sd=1, llm=1))
    async with working(door):
        await until(lambda: known(orchestrator.live_runners) == {"llm/org/chat": 1})
        await until(lambda: "with 400: invalid runner_url" in door.state.detail)
        assert "text-to-image org/sd" in door.state.detail
        await until(lambda: door.state.advertised == capacity(llm=1))


async def test_an_orchestrator_that_does_not_know_this_door_is_said_to_need_a_flag(
    orchestrator: LoopbackOrchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "cluster.loopback.live_runner_routes.LiveRunnerRoutes.has", lambda *_: False
    )
    door = registration(orchestrator)
    door.announce(capacity(sd=1))
    async with working(door):
        await until(lambda: "-useLiveRunners" in door.state.detail)
        assert not door.state.registered


async def test_what_one_gives_up_is_offered_by_another_only_afterwards(
    orchestrator: LoopbackOrchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat = Heartbeats._beat
    sums: list[int] = []

    async def slow_to_hide(runner: Heartbeats, http: Any) -> float:
        await asyncio.sleep(0 if runner.capacity else 0.2)
        pause_s = await beat(runner, http)
        sums.append(sum(known(orchestrator.live_runners).values()))
        return pause_s

    monkeypatch.setattr(Heartbeats, "_beat", slow_to_hide)
    door = registration(orchestrator)
    door.announce(capacity(sd=1))
    async with working(door):
        for turn in (capacity(llm=1), capacity(sd=1), capacity(llm=1)):
            await until(lambda: bool(known(orchestrator.live_runners)))
            door.announce(turn)
            await until(lambda: known(orchestrator.live_runners) == apps(turn))  # noqa: B023
        assert max(sums) == 1


async def test_models_that_share_a_card_are_announced_in_turn(
    orchestrator: LoopbackOrchestrator,
) -> None:
    def sharing(first: int, second: int) -> Capacity:
        shared = {SD: first, LLM: second}
        return Capacity(
            models={
                key: ModelCapacity(slots=1, warm=False, shared=number)
                for key, number in shared.items()
            }
        )

    door = registration(orchestrator)
    door.announce(sharing(0, 1))
    async with working(door):
        await until(lambda: known(orchestrator.live_runners) == {"text-to-image/org/sd": 1})
        door.announce(sharing(1, 0))
        await until(lambda: known(orchestrator.live_runners) == {"llm/org/chat": 1})
        assert door.state.advertised.slots(SD) == 0


async def test_another_price_is_told_also_of_a_model_that_is_hidden(
    patient: LoopbackOrchestrator,
) -> None:
    door = registration(patient)

    def told() -> dict[str, Any]:
        runners = patient.live_runners._runners.values()
        return {one.told.app.partition("/")[0]: one.told.price_info for one in runners}

    door.announce(capacity(sd=1, llm=1))
    async with working(door):
        await until(lambda: told() == {"text-to-image": None, "llm": None})
        door.announce(capacity(sd=1))
        await until(lambda: known(patient.live_runners) == {"text-to-image/org/sd": 1})
        prices = {
            key: {"price": price, "currency": "usd", "unit": "hour"}
            for key, price in ((SD, 0.02), (LLM, 0.03))
        }
        door.configure(prices)
        await until(lambda: told() == {"text-to-image": prices[SD], "llm": prices[LLM]})


async def test_a_model_that_left_the_configuration_is_unregistered(
    patient: LoopbackOrchestrator,
) -> None:
    door = registration(patient)
    ids = patient.live_runners._runners
    door.announce(capacity(sd=1, llm=1))
    async with working(door):
        await until(lambda: len(ids) == 2)
        # Hidden, and still known: it may have capacity again.
        door.announce(capacity(llm=1))
        await until(lambda: known(patient.live_runners) == {"llm/org/chat": 1})
        assert len(ids) == 2
        door.configure({LLM: None})
        await until(lambda: len(ids) == 1)
        # One that left before its capacity did.
        (first,) = ids
        door.configure({SD: None})
        await until(lambda: not ids)
        assert not door.state.registered
        assert not door.state.advertised
        door.configure({LLM: None})
        await until(lambda: known(patient.live_runners) == {"llm/org/chat": 1})
        assert first not in ids, "registered anew"


async def test_nobody_gets_the_slots_of_a_model_that_left_before_it_is_unregistered(
    patient: LoopbackOrchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave = Heartbeats.leave
    may_leave = asyncio.Event()

    async def slow_to_leave(runner: Heartbeats, http: Any) -> None:
        await may_leave.wait()
        await leave(runner, http)

    monkeypatch.setattr(Heartbeats, "leave", slow_to_leave)
    door = registration(patient)
    seen = patient.live_runners
    door.announce(capacity(sd=1))
    async with working(door):
        await until(lambda: bool(known(seen)))
        door.configure({LLM: None})
        door.announce(capacity(llm=1))
        try:
            await until(lambda: bool(door._leaving))
            assert not door._runners
            assert known(seen) == {"text-to-image/org/sd": 1}
        finally:
            may_leave.set()
        await until(lambda: known(seen) == {"llm/org/chat": 1})


async def test_what_is_wrong_with_a_model_that_left_is_no_problem_any_more(
    patient: LoopbackOrchestrator,
) -> None:
    urls = {SD: "nonsense", LLM: "http://127.0.0.1:1/llm"}
    door = registration(patient, runner_url=urls.__getitem__)
    door.announce(capacity(sd=1, llm=1))
    async with working(door):
        await until(lambda: "with 400: invalid runner_url" in door.state.detail)
        door.configure({LLM: None})
        assert not door.state.detail
        await until(lambda: door._runners.keys() == {LLM})
        assert door.state.registered


async def test_it_is_registered_no_longer_than_a_silent_orchestrator_remembers_it() -> None:
    async with LoopbackOrchestrator(secret=SECRET, heartbeat_s=HEARTBEAT_S) as orchestrator:
        door = registration(orchestrator)
        door.announce(capacity(sd=1))
        task = asyncio.create_task(door.run())
        await until(lambda: door.state.registered)
    await until(lambda: not door.state.registered)
    assert not door.state.advertised
    await until(lambda: bool(door.state.detail))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_refused_heartbeat_leaves_the_last_one_valid(
    patient: LoopbackOrchestrator,
) -> None:
    urls = {SD: "http://127.0.0.1:1/sd", LLM: "http://127.0.0.1:1/llm"}
    door = registration(patient, runner_url=urls.__getitem__)
    door.announce(capacity(sd=1))
    async with working(door):
        await until(lambda: door.state.registered)
        urls[SD] = "nonsense"
        door.announce(capacity(sd=2))
        await until(lambda: "with 400" in door.state.detail)
        assert door.state.registered
        assert known(patient.live_runners) == {"text-to-image/org/sd": 1}
