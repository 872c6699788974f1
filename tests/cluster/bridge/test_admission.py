"""Slots: taken, waited for, shared and refused."""

import asyncio

import pytest

from cluster.bridge.admission import MIN_WAITING, Admission
from cluster.errors import InsufficientCapacity
from tests.cluster.bridge.conftest import A, B, capacity


def admission(*, wait_s: float = 30.0, **slots: int) -> Admission:
    made = Admission(wait_s=wait_s)
    made.update(capacity(**slots))
    return made


class Holder:
    """A job that wants a slot and gives it back when told."""

    def __init__(self, admission: Admission, *, source: str = "") -> None:
        self.go = asyncio.Event()
        self.has_it = False
        self.task = asyncio.create_task(self._hold(admission, source))

    async def _hold(self, admission: Admission, source: str) -> None:
        async with admission.slot(A, source=source):
            self.has_it = True
            await self.go.wait()

    async def end(self) -> None:
        self.go.set()
        await self.task


async def settled() -> None:
    """Lets everything run that can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_job_waits_for_a_slot_in_its_turn() -> None:
    slots = admission(a=1)
    first, second, third = (Holder(slots) for _ in range(3))
    await settled()
    assert [job.has_it for job in (first, second, third)] == [True, False, False]
    await first.end()
    await settled()
    assert [job.has_it for job in (second, third)] == [True, False]
    await second.end()
    await settled()
    assert third.has_it
    await third.end()
    assert slots.in_flight[A] == 0


async def test_waiting_ends_and_says_so() -> None:
    slots = admission(a=1, wait_s=0.05)
    holder = Holder(slots)
    await settled()
    with pytest.raises(InsufficientCapacity, match=r"all 1 slots of .*org/a were taken for 0.05 s"):
        async with slots.slot(A):
            raise AssertionError("it had no slot")
    await holder.end()
    async with slots.slot(A):
        assert slots.in_flight[A] == 1


async def test_without_a_replica_nobody_waits() -> None:
    slots = admission(a=1)
    with pytest.raises(InsufficientCapacity, match="org/b has no replica now"):
        async with slots.slot(B):
            raise AssertionError("it had no slot")


async def test_few_wait_and_the_others_are_refused_at_once() -> None:
    slots = admission(a=1)
    jobs = [Holder(slots) for _ in range(1 + MIN_WAITING + 3)]
    await settled()
    refused = [job for job in jobs if job.task.done()]
    assert refused == jobs[1 + MIN_WAITING :]
    for job in refused:
        assert isinstance(job.task.exception(), InsufficientCapacity)
    for job in jobs[: 1 + MIN_WAITING]:
        await job.end()


async def test_new_slots_go_to_those_who_wait() -> None:
    slots = admission(a=1)
    jobs = [Holder(slots) for _ in range(3)]
    await settled()
    slots.update(capacity(a=3))
    await settled()
    assert all(job.has_it for job in jobs)
    slots.update(capacity(a=1))
    late = Holder(slots)
    await jobs[0].end()
    await jobs[1].end()
    await settled()
    assert not late.has_it, "those that hold a slot keep it, and count"
    await jobs[2].end()
    await settled()
    assert late.has_it
    await late.end()


async def test_a_cancelled_job_neither_waits_nor_holds() -> None:
    slots = admission(a=1)
    holder, waiting, next_one = (Holder(slots) for _ in range(3))
    await settled()
    waiting.task.cancel()
    await settled()
    # It becomes the next one's turn and is cancelled in the same moment.
    other = Holder(slots)
    await settled()
    holder.go.set()
    next_one.task.cancel()
    await settled()
    assert other.has_it or next_one.task.cancelled()
    await settled()
    assert other.has_it
    await other.end()
    assert slots.in_flight[A] == 0


async def test_a_free_slot_goes_to_whoever_holds_the_fewest() -> None:
    slots = admission(a=2)
    greedy = [Holder(slots, source="greedy") for _ in range(4)]
    await settled()
    modest = Holder(slots, source="modest")
    await settled()
    await greedy[0].end()
    await settled()
    assert modest.has_it
    assert [job.has_it for job in greedy] == [True, True, False, False]
    for job in (*greedy, modest):
        await job.end()


async def test_a_slot_is_free_again_after_a_failure() -> None:
    slots = admission(a=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with slots.slot(A):
                raise ZeroDivisionError


async def test_models_do_not_share_slots() -> None:
    slots = admission(a=1, b=1)
    async with slots.slot(A), slots.slot(B):
        assert (slots.in_flight[A], slots.in_flight[B]) == (1, 1)
