"""Jobs whose replica is lost run again; those that kill replicas do not for ever."""

import asyncio
from unittest.mock import AsyncMock

import pytest

from cluster.bridge import retry
from cluster.errors import InsufficientCapacity, JobFailed, ReplicaLost
from cluster.loopback import LoopbackOrchestrator
from tests.cluster.bridge.conftest import Ask, address, capacity, registered, running

AWAY = ReplicaLost("the node went away")


def died(replica: str) -> ReplicaLost:
    return ReplicaLost("the replica died", dead=replica)


async def test_a_job_outlives_its_replica(orchestrator: LoopbackOrchestrator, ask: Ask) -> None:
    async with running(address(orchestrator), capacity(a=1)) as bridge:
        await registered(orchestrator)
        bridge.backend.first = [died("a")]
        status, document = await ask(seed=5)
    assert (status, document["images"][0]["seed"]) == (200, 7)
    first, second = bridge.backend.started
    assert first == second, "the same request, not fetched or read again"
    assert [record.outcome for record in bridge.records] == ["ok"]


async def test_a_replica_dies_once(orchestrator: LoopbackOrchestrator, ask: Ask) -> None:
    async with running(address(orchestrator), capacity(a=1)) as bridge:
        await registered(orchestrator)
        bridge.backend.first = [died("a")] * 5
        assert (await ask())[0] == 200, "it was still chosen for a moment"


async def test_nodes_may_go_twice_and_not_for_ever(
    orchestrator: LoopbackOrchestrator, ask: Ask
) -> None:
    async with running(address(orchestrator), capacity(a=1)) as bridge:
        await registered(orchestrator)
        bridge.backend.first = [AWAY] * 2
        assert (await ask())[0] == 200
        bridge.backend.first = [AWAY] * 3
        status, document = await ask()
        assert (status, bridge.backend.first) == (503, [])
        assert "insufficient capacity: the node went away" in str(document)
        assert (await ask())[0] == 200, "it is not held against the request"


async def test_what_fails_otherwise_is_not_run_again(
    orchestrator: LoopbackOrchestrator, ask: Ask
) -> None:
    async with running(address(orchestrator), capacity(a=1)) as bridge:
        await registered(orchestrator)
        for error in (JobFailed("no"), InsufficientCapacity("busy")):
            bridge.backend.first = [error]
            assert (await ask())[0] == error.http_status
        assert len(bridge.backend.started) == 2


async def test_a_request_that_kills_replicas_is_refused_and_others_are_not(
    orchestrator: LoopbackOrchestrator, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(address(orchestrator), capacity(a=1)) as bridge:
        await registered(orchestrator)
        bridge.backend.first = [died("a"), died("a"), died("b")]
        status, document = await ask(prompt="poison")
        assert status == 503
        assert "this request was there when 2 replicas died" in str(document)
        assert len(bridge.backend.started) == 3
        assert (await ask(prompt="poison"))[0] == 503
        assert len(bridge.backend.started) == 3, "it never reaches a replica"
        assert (await ask(prompt="poison", seed=1))[0] == 200, "another request"
        monkeypatch.setattr(retry, "QUARANTINE_S", 0.0)
        assert (await ask(prompt="poison"))[0] == 200


async def test_a_death_counts_once_however_many_saw_it(
    orchestrator: LoopbackOrchestrator, ask: Ask
) -> None:
    async with running(address(orchestrator), capacity(a=2)) as bridge:
        await registered(orchestrator)
        bridge.backend.hold.clear()
        bridge.backend.first = [died("a")] * 2
        asked = [asyncio.create_task(ask(prompt="twins")) for _ in range(2)]
        await bridge.backend.wait_for_started(2)
        bridge.backend.hold.set()
        assert [status for status, _ in await asyncio.gather(*asked)] == [200, 200]
        bridge.backend.first = [died("b")]
        status, document = await ask(prompt="twins")
        assert status == 503
        assert "this request was there when 2 replicas died" in str(document)


async def test_a_death_of_long_ago_costs_nothing(
    orchestrator: LoopbackOrchestrator, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(address(orchestrator), capacity(a=1)) as bridge:
        await registered(orchestrator)
        bridge.backend.first = [died("a")]
        assert (await ask())[0] == 200
        monkeypatch.setattr(retry, "QUARANTINE_S", 0.0)
        # A digest of the request, which may have 300 MB.
        fingerprint = AsyncMock(wraps=retry._fingerprint)
        monkeypatch.setattr(retry, "_fingerprint", fingerprint)
        assert (await ask(prompt="another"))[0] == 200
        fingerprint.assert_not_awaited()


async def test_the_oldest_suspects_are_forgotten_first(
    orchestrator: LoopbackOrchestrator, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "MAX_SUSPECTS", 2)
    async with running(address(orchestrator), capacity(a=1)) as bridge:
        await registered(orchestrator)
        for prompt, replica in [("x", "a"), ("y", "b"), ("x", "c"), ("z", "d")]:
            bridge.backend.first = [died(replica)]
            await ask(prompt=prompt)
        assert (await ask(prompt="x"))[0] == 503, "its latest death was not the oldest"
        bridge.backend.first = [died("e")]
        assert (await ask(prompt="y"))[0] == 200


async def test_a_retry_has_what_is_left_of_the_deadline(
    orchestrator: LoopbackOrchestrator, ask: Ask
) -> None:
    async with running(address(orchestrator), capacity(a=1), deadline_s=0.5) as bridge:
        await registered(orchestrator)
        bridge.backend.first = [died("a")]
        bridge.backend.hold.clear()
        asked = asyncio.create_task(ask())
        await bridge.backend.wait_for_started(1)
        bridge.backend.hold.set()
        await asyncio.sleep(0)
        bridge.backend.hold.clear()
        await bridge.backend.wait_for_started(2)
        status, document = await asked
        assert status == 500
        assert "no result within 0.5 s" in str(document)
        assert bridge.backend.cancelled == 1
