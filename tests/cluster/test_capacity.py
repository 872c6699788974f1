"""Replicas added up into slots, and the watch that notices changes."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from cluster.ai_models import AIModel, ModelKey, RayOptions, load_ai_models
from cluster.capacity import Capacity, CapacityWatch, ModelCapacity, ModelStatus, capacity_of

KEY = ModelKey("text-to-image", "org/a")


def models(text: str = "text-to-image:org/a:true", *, slots: int = 1) -> tuple[AIModel, ...]:
    found = load_ai_models(text).models
    return tuple(replace(model, ray=RayOptions(max_ongoing_requests=slots)) for model in found)


def test_slots_are_replicas_times_requests_at_a_time() -> None:
    capacity = capacity_of(models(slots=2), running(3))
    assert capacity.models == {KEY: ModelCapacity(slots=6, warm=True)}
    assert capacity.slots(KEY) == 6


def test_a_warm_model_without_a_replica_is_not_there() -> None:
    capacity = capacity_of(models(), {})
    assert not capacity
    assert capacity.slots(KEY) == 0
    assert str(capacity) == "nothing"


OTHER = ModelKey("upscale", "org/b")


def known(slots: int, *, other: int = 0, warm: bool = True) -> Capacity:
    found = {KEY: ModelCapacity(slots=slots, warm=warm)}
    if other:
        found[OTHER] = ModelCapacity(slots=other, warm=True)
    return Capacity(models=found)


@pytest.mark.parametrize(
    ("before", "after", "added"),
    [
        (known(1), known(3), {KEY: ModelCapacity(slots=2, warm=True)}),
        (known(1), known(1, other=2), {OTHER: ModelCapacity(slots=2, warm=True)}),
        (Capacity(), known(1), {KEY: ModelCapacity(slots=1, warm=True)}),
        (known(1), known(1), {}),
    ],
)
def test_growth_is_what_came_on_top(
    before: Capacity, after: Capacity, added: dict[ModelKey, ModelCapacity]
) -> None:
    growth = after.growth_over(before)
    assert growth is not None
    assert growth.models == added


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (known(2), known(1, other=3)),
        (known(1, other=1), known(2)),
        (known(1), known(2, warm=False)),
    ],
)
def test_what_shrank_or_became_another_is_no_growth(before: Capacity, after: Capacity) -> None:
    assert after.growth_over(before) is None


def replica(count: int) -> ModelStatus:
    return ModelStatus(state="RUNNING", running=count)


def running(count: int) -> dict[ModelKey, ModelStatus]:
    return {KEY: replica(count)}


class Serve:
    """Stands for the Serve controller, whose answers a test cannot otherwise time."""

    def __init__(self) -> None:
        self.status: Mapping[ModelKey, ModelStatus] | Exception = {}

    def read(self, models: Sequence[AIModel]) -> Mapping[ModelKey, ModelStatus]:
        if isinstance(self.status, Exception):
            raise self.status
        keys = {model.key for model in models}
        return {key: status for key, status in self.status.items() if key in keys}


@pytest.fixture
def serve() -> Serve:
    return Serve()


def watch(serve: Serve) -> CapacityWatch:
    return CapacityWatch(models=models(), read_status=serve.read, interval_s=0.01)


async def test_every_change_is_a_snapshot(serve: Serve) -> None:
    snapshots = watch(serve).snapshots()
    assert await anext(snapshots) == Capacity()
    for count in (2, 1, 4):
        serve.status = running(count)
        assert (await anext(snapshots)).slots(KEY) == count


async def test_nothing_new_is_no_snapshot(serve: Serve) -> None:
    serve.status = running(1)
    snapshots = watch(serve).snapshots()
    await anext(snapshots)
    waiting = asyncio.ensure_future(anext(snapshots))
    await asyncio.wait({waiting}, timeout=0.2)
    assert not waiting.done()
    serve.status = running(2)
    assert (await waiting).slots(KEY) == 2


async def test_a_rebuilding_application_keeps_its_capacity(serve: Serve) -> None:
    serve.status = running(2)
    snapshots = watch(serve).snapshots()
    await anext(snapshots)
    waiting = asyncio.ensure_future(anext(snapshots))
    serve.status = {KEY: ModelStatus(state="DEPLOYING", rebuilding=True)}
    await asyncio.wait({waiting}, timeout=0.2)
    assert not waiting.done()
    serve.status = {KEY: ModelStatus(state="DEPLOYING", running=0)}
    assert (await waiting).slots(KEY) == 0


async def test_a_rebuild_without_an_end_is_believed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.capacity.REBUILD_S", 0.05)
    serve.status = running(2)
    snapshots = watch(serve).snapshots()
    await anext(snapshots)
    serve.status = {KEY: ModelStatus(state="DEPLOYING", rebuilding=True)}
    assert not await anext(snapshots)


async def test_a_controller_that_never_answers_again_is_no_capacity(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cluster.capacity.SILENCE_S", 0.05)
    serve.status = running(2)
    snapshots = watch(serve).snapshots()
    await anext(snapshots)
    serve.status = RuntimeError("gone")
    assert not await anext(snapshots)
    assert caplog.text.count("Serve does not answer (RuntimeError)") == 1


async def test_a_controller_that_does_not_answer_for_a_moment_changes_nothing(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    serve.status = running(2)
    snapshots = watch(serve).snapshots()
    await anext(snapshots)
    waiting = asyncio.ensure_future(anext(snapshots))
    serve.status = RuntimeError("the controller is gone")
    await asyncio.wait({waiting}, timeout=0.2)
    assert not waiting.done()
    assert caplog.text.count("Serve does not answer (RuntimeError)") == 1
    serve.status = running(1)
    assert (await waiting).slots(KEY) == 1


async def test_a_broken_model_is_said_once_and_with_its_reason(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    serve.status = {KEY: ModelStatus(state="DEPLOY_FAILED", message="no such directory: /models")}
    snapshots = watch(serve).snapshots()
    assert await anext(snapshots) == Capacity()
    waiting = asyncio.ensure_future(anext(snapshots))
    await asyncio.wait({waiting}, timeout=0.2)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage() for record in errors] == [
        "text-to-image org/a: DEPLOY_FAILED: no such directory: /models"
    ]
    waiting.cancel()


async def test_other_models_can_be_configured(serve: Serve) -> None:
    serve.status = {KEY: replica(2), OTHER: replica(1)}
    watching = CapacityWatch(models=models(), read_status=serve.read, interval_s=3600)
    snapshots = watching.snapshots()
    assert (await anext(snapshots)).models.keys() == {KEY}
    watching.configure(models("text-to-image:org/a:true,upscale:org/b:true"))
    assert (await anext(snapshots)).models.keys() == {KEY, OTHER}
    watching.configure(models("upscale:org/b:true"))
    assert (await anext(snapshots)).models.keys() == {OTHER}


async def test_a_rebuilding_model_keeps_its_capacity_when_others_are_configured(
    serve: Serve,
) -> None:
    serve.status = running(2)
    watching = CapacityWatch(models=models(), read_status=serve.read, interval_s=3600)
    snapshots = watching.snapshots()
    await anext(snapshots)
    serve.status = {KEY: ModelStatus(state="DEPLOYING", rebuilding=True)}
    watching.configure(models(slots=3))
    assert (await anext(snapshots)).slots(KEY) == 6
