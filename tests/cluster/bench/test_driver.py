"""The driver on a real replica in this process, and where a model is measured."""

import argparse
import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cluster.ai_models import AIModel, ModelKey
from cluster.bench.driver import measure
from cluster.bench.options import BenchOptions, add_bench_flags, bench_options
from cluster.bench.workload import Workload
from cluster.commands.bench import to_deploy
from cluster.errors import ConfigError
from deployments.llm import LLMReplica
from deployments.model_args import ModelArgs
from deployments.schemas.base import Chunk, Completed, Result
from deployments.tiny_models import write_tiny_models

KEY = ModelKey("llm", "livepeer-ray/tiny-qwen3")


class InProcess:
    """A backend over one replica, as `RayBackend` is over those of a cluster."""

    def __init__(self, replica: LLMReplica) -> None:
        self._replica = replica
        self.at_once = self.most_at_once = 0
        self.contents: list[str] = []

    @contextmanager
    def _counted(self, request: Any) -> Iterator[None]:
        self.contents.append(request.messages[0].content)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        yield
        self.at_once -= 1

    async def run(self, _key: ModelKey, request: Any, *, timeout_s: float) -> Completed[Result]:
        with self._counted(request):
            completed = await self._replica.run(request, timeout_s=timeout_s)
        return Completed(
            result=completed.result, replica=completed.replica, compute_s=completed.compute_s
        )

    async def stream(
        self, _key: ModelKey, request: Any, *, timeout_s: float
    ) -> AsyncGenerator[Chunk, None]:
        with self._counted(request):
            async for chunk in self._replica.stream(request, timeout_s=timeout_s):
                yield chunk


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLMReplica]:
    models_dir = tmp_path_factory.mktemp("models")
    write_tiny_models(models_dir, ["llm"])
    loaded = LLMReplica(args=ModelArgs(**KEY._asdict(), models_dir=models_dir))
    yield loaded
    loaded.close()


@pytest.mark.parametrize("stream", [True, False])
async def test_jobs_are_counted_timed_and_different(replica: LLMReplica, stream: bool) -> None:
    backend = InProcess(replica)
    # One token: random weights may end an answer at any other.
    workload = Workload(
        pipeline="llm",
        model_id=KEY.model_id,
        parameters={"max_tokens": 1, "stream": stream},
        file=None,
        batch=1,
    )
    said: list[str] = []
    one, four = await measure(backend, KEY, workload, levels=(1, 4), runs=2, say=said.append)
    assert [len(level.jobs) for level in (one, four)] == [2, 4]
    assert said == ["2 requests, 1 at a time", "4 requests, 4 at a time"]
    assert backend.most_at_once == 4
    # The first is for the handle.
    assert len(set(backend.contents)) == len(backend.contents) == 1 + 2 + 4
    for level in (one, four):
        assert level.units_per_s == pytest.approx(len(level.jobs) / level.seconds)
        for job in level.jobs:
            assert job.scored > 10 * job.units == 10
            assert (job.first_s is not None) == stream
            assert job.seconds <= level.seconds


async def test_an_error_ends_the_measurement(replica: LLMReplica) -> None:
    workload = Workload(
        pipeline="llm",
        model_id=KEY.model_id,
        parameters={"top_k": 1_000_000},
        file=None,
        batch=1,
    )
    with pytest.raises(Exception, match="top_k: 1000000 is more than the"):
        await measure(InProcess(replica), KEY, workload, levels=(2,), runs=2, say=lambda _: None)


async def test_an_llm_tells_its_vitals(replica: LLMReplica) -> None:
    parts = ["process", "find", "imports", "weights", "device", "warm-up"]
    vitals = await asyncio.wait_for(replica.vitals(), timeout=30)
    assert list(vitals.start_up_s) == parts


def options(*flags: str) -> BenchOptions:
    parser = argparse.ArgumentParser()
    add_bench_flags(parser)
    model = ("--pipeline", "upscale", "--model-id", "org/a")
    return bench_options(parser.parse_args([*model, *flags]))


def test_where_a_model_is_measured() -> None:
    models = {"none": AIModel(pipeline="upscale", model_id="org/a")}
    ours, other = "upscale--org--a", "upscale--org--b"
    assert to_deploy(options(), models, served=()) == models
    assert to_deploy(options(), models, served=(other, ours)) == {"as deployed": None}
    with pytest.raises(ConfigError, match=f"this cluster serves {other}; to measure another"):
        to_deploy(options(), models, served=[other])
    for flags in (("--flags", "none"), ("--ray", '{"num_gpus": 0.5}')):
        with pytest.raises(ConfigError, match="serves the model already, and is not changed"):
            to_deploy(options(*flags), models, served=[ours])


def test_flags_that_are_named_twice_are_measured_once() -> None:
    assert options("--flags", "DEEPCACHE,none,DEEPCACHE").flags == ("DEEPCACHE", "none")
