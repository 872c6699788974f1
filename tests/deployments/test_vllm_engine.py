"""vLLM under an llm replica: what ends it, what hangs it, what it cannot run.

What it has in common with transformers' engine is in test_llm.py. All of this takes vLLM, which
has an environment of its own: docs/development.md says how to run it.
"""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest

from deployments.errors import LivepeerRayError, ModelBroken, ReplicaBroken
from deployments.vllm_engine import VLLMReplica
from tests.deployments.chats import (
    TINY_LLM,
    VLLM_IS_HERE,
    answer,
    args,
    chat,
    generated,
    idle,
    streamed,
    write_llm,
)

pytestmark = pytest.mark.skipif(
    not VLLM_IS_HERE, reason="vLLM is not installed: it has an environment of its own"
)


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    write_llm(directory)
    return directory


@pytest.fixture
def replica(models_dir: Path) -> Iterator[VLLMReplica]:
    loaded = VLLMReplica(args=args(models_dir))
    assert vllm_processes()
    yield loaded
    loaded.close()
    assert psutil.wait_procs(vllm_processes(), timeout=60)[1] == []


def vllm_processes() -> list[psutil.Process]:
    """Those that a replica in this process has, by the names that vLLM gives them."""
    children = psutil.Process().children(recursive=True)
    alive = (child for child in children if child.status() != psutil.STATUS_ZOMBIE)
    return [child for child in alive if child.name().startswith("VLLM")]


def engine_core() -> psutil.Process:
    """The process in which the engine decides who computes next."""
    (core,) = (child for child in vllm_processes() if "EngineCore" in child.name())
    return core


async def test_an_engine_that_died_fails_its_requests_and_the_health_check(
    replica: VLLMReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = generated(replica, "stop", 8)
    # The tiny model does not know when to stop, so its fourth token is made the end.
    with monkeypatch.context() as patch:
        patch.setattr(replica._engine, "end_tokens", frozenset({tokens[3]}))
        said = tokens[: tokens.index(tokens[3])]
        result = await answer(replica, chat("stop", max_tokens=8))
        assert (result.finish_reason, result.usage.completion_tokens) == ("stop", len(said) + 1)
        assert result.text == replica._tokenizer.decode(said)

    await replica.check_health()
    async with aclosing(replica.stream(chat(max_tokens=2000))) as stream:
        await anext(stream)
        engine_core().kill()
        with pytest.raises(ReplicaBroken, match="the engine has ended"):
            [chunk async for chunk in stream]
    with pytest.raises(LivepeerRayError, match="the engine has ended"):
        await replica.check_health()
    with pytest.raises(ReplicaBroken, match="the engine has ended"):
        await replica.run(chat())


async def test_an_engine_that_hangs_lets_go_and_is_given_up(
    replica: VLLMReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = replica._engine
    core = engine_core()
    os.kill(core.pid, signal.SIGSTOP)
    try:
        leaving = asyncio.create_task(replica.run(chat()))
        while not engine._llm.output_processor.has_unfinished_requests():
            await asyncio.sleep(0.01)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await idle(replica)

        waiting = asyncio.create_task(streamed(replica, chat()))
        await replica.check_health()
        monkeypatch.setattr("deployments.llm.STUCK_S", 1.0)
        async with asyncio.timeout(30):
            while engine.late_s < 1.0:
                await asyncio.sleep(0.1)
        assert not waiting.done()
        with pytest.raises(LivepeerRayError, match="the engine is stuck, it owes an answer"):
            await replica.check_health()
        # It can be run again on another replica, at once.
        with pytest.raises(ReplicaBroken, match="the engine is stuck"):
            await waiting
    finally:
        os.kill(core.pid, signal.SIGCONT)


def test_a_model_that_vllm_cannot_run_is_broken(tmp_path: Path) -> None:
    write_llm(tmp_path)
    (config,) = tmp_path.glob(f"models--{TINY_LLM.replace('/', '--')}/snapshots/*/config.json")
    contents = json.loads(config.read_text())
    config.unlink()
    config.write_text(json.dumps({**contents, "num_key_value_heads": 3}))
    with pytest.raises(ModelBroken, match=rf"{TINY_LLM}: vLLM does not run this model here"):
        VLLMReplica(args=args(tmp_path))
