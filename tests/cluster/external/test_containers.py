"""The containers of a file, and what becomes of them when it changes."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from cluster.backends.containers import Containers, lowest
from cluster.bridge.capabilities import capabilities
from cluster.capacity import Capacity, ModelCapacity
from tests.cluster.external.runner import IMAGES, LLM, TOKEN, Runner, runner
from tests.cluster.external.test_external import run
from tests.cluster.external.test_health import until
from tests.cluster.test_capacity import known


@pytest.fixture
async def other() -> AsyncIterator[Runner]:
    async with runner() as started:
        yield started


@pytest.fixture
async def containers() -> AsyncIterator[Containers]:
    async with Containers(interval_s=0.02) as opened:
        yield opened


def capacity(slots: int, version: str = "0.14.1") -> Capacity:
    return Capacity(models={IMAGES: ModelCapacity(slots=slots, warm=True, runner_version=version)})


async def test_ready_ones_of_a_model_are_added_up(
    containers: Containers, container: Runner, other: Runner
) -> None:
    other.version, other.health = "0.9.12", 503
    containers.configure([container.model(capacity=2), other.model(capacity=3)])
    assert not containers.capacity()
    await until(lambda: containers.capacity() == capacity(2))
    other.health = {"status": "OK"}
    await until(lambda: containers.capacity() == capacity(5, "0.9.12"))
    assert len(containers.with_gpus({})[IMAGES]) == 2
    container.health = 503
    await until(lambda: containers.capacity() == capacity(3, "0.9.12"))


async def test_ray_and_containers_are_one_model() -> None:
    both = known(2, other=1).plus(capacity(3))
    assert both.slots(IMAGES) == 5
    assert both.models.keys() == known(2, other=1).models.keys()
    assert both.models[IMAGES].runner_version == "0.14.1"
    assert known(2).plus(Capacity()) == known(2)
    constraints = capabilities(both, version="0.9.1").constraints.PerCapability
    assert constraints[27].models["org/a"].capacity == 5
    assert constraints[27].models["org/a"].runnerVersion == "0.14.1"


async def test_a_changed_file(containers: Containers, container: Runner, other: Runner) -> None:
    containers.configure([container.model(capacity=2)])
    await until(lambda: containers.capacity().slots(IMAGES) == 2)
    (kept,) = containers

    # Another capacity: nothing is asked anew.
    containers.configure([container.model(capacity=4), other.model(LLM)])
    assert containers.capacity().slots(IMAGES) == 4
    assert next(iter(containers)) is kept

    # Another token: it has to prove itself with it.
    containers.configure([container.model(token=TOKEN)])
    (leaving,) = containers
    assert leaving is not kept
    assert not containers.capacity()
    await until(containers.capacity)

    # Gone: nobody asks it any more, and jobs that run there are finished.
    running = asyncio.create_task(run(leaving))
    await until(lambda: container.seen)
    containers.configure([other.model(LLM)])
    assert (await running).result.files
    checks = container.checks
    await until(lambda: other.checks > 3)
    assert container.checks <= checks + 1
    assert IMAGES not in containers.capacity().models


def test_the_lowest_version() -> None:
    assert lowest(["0.14.1", "v0.9.12", "undefined", ""]) == "v0.9.12"
    assert lowest(["1.2", "1.2.1-beta"]) == "1.2"
    assert lowest(["undefined"]) == ""
    assert lowest([]) == ""
