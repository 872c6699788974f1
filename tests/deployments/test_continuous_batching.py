"""transformers' engine under an llm replica: what ends it, what hangs it, what it may take."""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deployments.continuous_batching import GPU_CACHE_SHARE, ContinuousBatching, _drawing
from deployments.errors import (
    InferenceFailed,
    LivepeerRayError,
    ModelBroken,
    ReplicaBroken,
    ReplicaError,
)
from deployments.llm import LLMReplica
from deployments.llm_engine import Mailbox, Prompt, Sampling
from tests.deployments.chats import (
    PATIENCE_S,
    TINY_LLM,
    answer,
    args,
    chat,
    generated,
    idle,
    streamed,
    write_llm,
)


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    write_llm(directory)
    return directory


@pytest.fixture(scope="module")
def replica(models_dir: Path) -> Iterator[LLMReplica]:
    loaded = LLMReplica(args=args(models_dir))
    yield loaded
    loaded.close()


@pytest.fixture
def another(models_dir: Path) -> Iterator[LLMReplica]:
    """One that a test may break."""
    loaded = LLMReplica(args=args(models_dir))
    yield loaded
    loaded.close()


def engine_of(replica: LLMReplica) -> ContinuousBatching:
    engine = replica._engine
    assert isinstance(engine, ContinuousBatching)
    return engine


def test_greedy_leaves_one_token_even_of_two_with_the_same_score() -> None:
    greedy = _drawing(Sampling.of(temperature=0, top_k=50, top_p=0.9, vocabulary=100))
    assert greedy == {"temperature": 1.0, "top_k": 1, "top_p": 0.0}
    everything = _drawing(Sampling.of(temperature=1, top_k=-1, top_p=1, vocabulary=100))
    assert everything == {"temperature": 1.0, "top_k": 100, "top_p": 1.0}


async def test_several_that_fill_the_cache_all_come_to_their_end(replica: LLMReplica) -> None:
    contents = [f"{number} " + "word " * 380 for number in range(12)]
    expected = [generated(replica, content, 5) for content in contents[:2]]
    results = await asyncio.gather(*(answer(replica, chat(c, max_tokens=5)) for c in contents))
    assert [result.usage.completion_tokens for result in results] == [5] * 12
    for tokens, result in zip(expected, results, strict=False):
        assert result.text == replica._tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("temperature", [0, 1])
async def test_nothing_is_sorted_for_requests_that_do_not_need_it(
    replica: LLMReplica, monkeypatch: pytest.MonkeyPatch, temperature: int
) -> None:
    sort, sorts = torch.sort, []

    def counted(*arguments: Any, **options: Any) -> Any:
        sorts.append(arguments)
        return sort(*arguments, **options)

    monkeypatch.setattr("torch.sort", counted)
    await answer(replica, chat(max_tokens=3, temperature=temperature))
    assert not sorts
    drawn = await answer(replica, chat(max_tokens=3, temperature=1, top_p=0.5))
    assert len(sorts) == drawn.usage.completion_tokens, "one in each pass that draws"


async def test_a_router_that_died_leaves_nobody_waiting(
    another: LLMReplica, monkeypatch: pytest.MonkeyPatch
) -> None:

    def stumble(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(another._engine, "_deliver", stumble)
    with pytest.raises(ReplicaBroken, match="KeyError: 'a bug'"):
        await answer(another, chat(max_tokens=1))
    with pytest.raises(LivepeerRayError, match="the engine has ended"):
        await another.check_health()


async def test_an_engine_that_died_fails_its_requests_and_the_health_check(
    another: LLMReplica,
) -> None:
    await another.check_health()
    async with aclosing(another.stream(chat(max_tokens=2000))) as stream:
        await anext(stream)
        # What a request past our checks would do: the library's loop trips over it.
        anything = Sampling(temperature=1.0, top_k=50, top_p=1.0)
        prompt = Prompt(tokens=[1, 10**6], max_tokens=4, sampling=anything)
        poison = another._engine.generate(prompt, stream=False)
        with pytest.raises(ReplicaBroken):
            await anext(poison)
        with pytest.raises(ReplicaBroken):
            [chunk async for chunk in stream]
    async with asyncio.timeout(30):
        while another._engine.fault is None:
            await asyncio.sleep(0.01)
    with pytest.raises(ReplicaBroken, match="the engine has ended"):
        await another.run(chat())
    with pytest.raises(LivepeerRayError, match="the engine has ended"):
        await another.check_health()


async def test_an_engine_that_breaks_down_is_told_from_a_request_that_failed(
    another: LLMReplica,
) -> None:
    engine = engine_of(another)
    output = SimpleNamespace(request_id="one", error="why")

    async def failure() -> BaseException:
        mailbox = engine._mailboxes["one"] = Mailbox()
        engine._deliver(output)
        with pytest.raises(ReplicaError, match="why") as caught:
            await mailbox.take()
        return caught.value

    assert type(await failure()) is InferenceFailed
    engine.close()
    assert type(await failure()) is ReplicaBroken


def test_models_that_share_a_gpu_leave_each_other_memory(
    replica: LLMReplica, models_dir: Path
) -> None:
    half = LLMReplica(args=args(models_dir).model_copy(update={"gpu_share": 0.5}))
    half.close()
    # A CPU's cache has a fixed size; what a GPU's would take stands in the library's settings.
    shares = [
        engine_of(each)._manager.continuous_batching_config.max_memory_percent
        for each in (replica, half)
    ]
    assert shares == [GPU_CACHE_SHARE, GPU_CACHE_SHARE / 2]


def test_a_model_that_the_engine_cannot_run_is_broken(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = f"models--{TINY_LLM.replace('/', '--')}"
    shutil.copytree(models_dir / folder, tmp_path / folder, symlinks=True)

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("Invalid group type: mamba")

    monkeypatch.setattr(ContinuousBatching, "__init__", refuse)
    with pytest.raises(ModelBroken, match=r"continuous batching does not run .* mamba"):
        LLMReplica(args=args(tmp_path))


async def test_an_engine_that_hangs_is_given_up(
    another: LLMReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hanging(another) as began:
        running, waiting = (asyncio.create_task(another.run(chat())) for _ in range(2))
        await asyncio.to_thread(began.wait, PATIENCE_S)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await another.check_health()
        assert not waiting.done()
        monkeypatch.setattr("deployments.llm.STUCK_S", 0.0)
        with pytest.raises(LivepeerRayError, match="the engine is stuck, it owes an answer"):
            await another.check_health()
        # It can be run again on another replica, at once.
        with pytest.raises(ReplicaBroken, match="the engine is stuck"):
            await waiting
    with pytest.raises(LivepeerRayError, match="the engine is stuck"):
        await another.check_health()


@contextmanager
def hanging(replica: LLMReplica) -> Iterator[threading.Event]:
    """The model's next pass does not end before the context does; the event tells that it began."""
    began, go_on = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        began.set()
        go_on.wait(PATIENCE_S)

    hook = engine_of(replica)._manager.model.register_forward_pre_hook(hang)
    try:
        yield began
    finally:
        hook.remove()
        go_on.set()


async def test_an_answer_past_its_deadline_is_stopped(replica: LLMReplica) -> None:
    stream = replica.stream(chat(max_tokens=500), timeout_s=5.0)
    chunks = [await anext(stream)]
    with hanging(replica):
        chunks += [chunk async for chunk in stream]
        with pytest.raises(InferenceFailed, match="stopped after 0 s: its time was over"):
            await replica.run(chat(), timeout_s=0.05)
        with pytest.raises(InferenceFailed, match="stopped after 0 s: its time was over"):
            await anext(replica.stream(chat(), timeout_s=0.05))
    assert chunks[-1].finish_reason == "length"
    assert 0 < chunks[-1].usage.completion_tokens < 500
    await idle(replica)


async def test_an_answer_that_ends_by_itself_stops(
    replica: LLMReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = generated(replica, "stop", 8)
    # The tiny model does not know when to stop, so its fourth token is made the end.
    monkeypatch.setattr(engine_of(replica)._manager.generation_config, "eos_token_id", tokens[3])
    monkeypatch.setattr(replica._engine, "end_tokens", frozenset({tokens[3]}))
    said = tokens[: tokens.index(tokens[3])]
    result = await answer(replica, chat("stop", max_tokens=8))
    assert result.finish_reason == "stop"
    assert result.text == replica._tokenizer.decode(said)
    assert result.usage.completion_tokens == len(said) + 1
    *_, last = await streamed(replica, chat("stop", max_tokens=8))
    assert (last.finish_reason, last.usage) == ("stop", result.usage)
