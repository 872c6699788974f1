"""Slots: taken at once, waited for a moment, refused."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from cluster.bridge.admission import Admission
from cluster.errors import InsufficientCapacity
from tests.cluster.bridge.conftest import A, B, capacity


@pytest.fixture
def admission() -> Admission:
    admission = Admission()
    admission.update(capacity(a=2))
    return admission


async def hold(admission: Admission) -> AsyncExitStack:
    held = AsyncExitStack()
    await held.enter_async_context(admission.slot(A))
    return held


async def test_a_job_beyond_the_slots_waits_for_one(admission: Admission) -> None:
    held = [await hold(admission), await hold(admission)]
    waiting = [asyncio.create_task(hold(admission)) for _ in range(2)]
    await asyncio.sleep(0)
    assert not waiting[0].done()
    await held[0].aclose()
    await waiting[0]
    assert not waiting[1].done()
    await held[1].aclose()
    await waiting[1]


async def test_it_waits_for_a_moment_only(
    admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.bridge.admission.WAIT_S", 0.05)
    held = [await hold(admission), await hold(admission)]
    with pytest.raises(InsufficientCapacity, match="all 2 slots of text-to-image org/a are taken"):
        await hold(admission)
    await held[0].aclose()
    await hold(admission)


async def test_few_may_wait(admission: Admission) -> None:
    held = [await hold(admission), await hold(admission)]
    waiting = [asyncio.create_task(hold(admission)) for _ in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(InsufficientCapacity, match="all 2 slots"):
        await hold(admission)
    for stack in held:
        await stack.aclose()
    for task in waiting:
        await (await task).aclose()


async def test_models_do_not_take_each_others_slots(admission: Admission) -> None:
    admission.update(capacity(a=1, b=1))
    await hold(admission)
    async with admission.slot(B):
        pass


async def test_a_slot_is_free_again_after_a_failure(admission: Admission) -> None:
    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            async with admission.slot(A):
                _ = 1 / 0


async def test_without_a_replica_nobody_waits(admission: Admission) -> None:
    with pytest.raises(InsufficientCapacity, match="org/b has no replica now"):
        async with admission.slot(B):
            pass


async def test_more_capacity_is_for_those_who_wait(admission: Admission) -> None:
    for _ in range(2):
        await hold(admission)
    waiting = asyncio.create_task(hold(admission))
    await asyncio.sleep(0)
    admission.update(capacity(a=3))
    await waiting


async def test_less_capacity_takes_no_slot_away(admission: Admission) -> None:
    held = [await hold(admission), await hold(admission)]
    admission.update(capacity(a=1))
    waiting = asyncio.create_task(hold(admission))
    await held[0].aclose()
    await asyncio.sleep(0)
    assert not waiting.done(), "one slot, and it is held"
    await held[1].aclose()
    await waiting


@pytest.mark.parametrize("granted", [False, True])
async def test_who_stops_waiting_holds_nothing(admission: Admission, granted: bool) -> None:
    held = [await hold(admission), await hold(admission)]
    waiting = asyncio.create_task(hold(admission))
    await asyncio.sleep(0)
    if granted:
        await held.pop().aclose()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert waiting.cancelled()
    for stack in held:
        await stack.aclose()
    for _ in range(2):
        await asyncio.wait_for(hold(admission), timeout=1)
