"""Chats with llm replicas, on whichever engine."""

import asyncio
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deployments.continuous_batching import ContinuousBatching
from deployments.llm import LLMReplica
from deployments.model_args import ModelArgs
from deployments.schemas.llm import LLMChunk, LLMRequest, LLMResult
from deployments.tiny_models.language_model import save_language_model
from deployments.tiny_models.repository import write_repository

TINY_LLM = "livepeer-ray/tiny-qwen3"
CONTEXT_TOKENS = 2048
PATIENCE_S = 60.0

VLLM_IS_HERE = find_spec("vllm") is not None


def write_llm(models_dir: Path) -> None:
    """Writes the tiny model with larger heads: vLLM has no others on CPUs."""
    write_repository(models_dir, TINY_LLM, partial(save_language_model, head_dim=32))


def args(models_dir: Path, model_id: str = TINY_LLM) -> ModelArgs:
    return ModelArgs(pipeline="llm", model_id=model_id, models_dir=models_dir)


def chat(content: str = "What is a GPU?", **parameters: Any) -> LLMRequest:
    """Returns a request whose answer is the same every time, unless told otherwise."""
    payload = {"messages": [{"role": "user", "content": content}], "temperature": 0, **parameters}
    return LLMRequest.parse(payload)


async def answer(replica: LLMReplica, request: LLMRequest) -> LLMResult:
    return (await replica.run(request)).result


async def streamed(replica: LLMReplica, request: LLMRequest) -> list[LLMChunk]:
    return [chunk async for chunk in replica.stream(request)]


def generated(replica: LLMReplica, content: str, max_tokens: int) -> list[int]:
    """What transformers' ordinary generate says, greedily: the answer's tokens."""
    encoded = replica._tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    # vLLM knows no tokens that a model is never to draw.
    drawn = {} if isinstance(replica._engine, ContinuousBatching) else {"suppress_tokens": None}
    output = _model(replica.find()).generate(
        **encoded, do_sample=False, max_new_tokens=max_tokens, **drawn
    )
    return list(output[0, encoded["input_ids"].shape[1] :].tolist())


async def idle(replica: LLMReplica) -> None:
    """Waits until the engine holds no request."""
    engine: Any = replica._engine
    if isinstance(engine, ContinuousBatching):
        holds = engine._manager.batch_processor.scheduler.has_pending_requests
    else:
        holds = engine._llm.output_processor.has_unfinished_requests
    async with asyncio.timeout(30):
        while holds():
            await asyncio.sleep(0.01)


@lru_cache(maxsize=1)
def _model(snapshot: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(snapshot, local_files_only=True)
