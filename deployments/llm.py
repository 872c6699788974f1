"""llm: chat with causal language models, many requests at once.

Unlike other replicas, `run` and `stream` do not wait for a model thread: every request is a
row in the batches of one engine (`deployments.llm_engine`), here transformers'. The model thread
loads, and turns prompts into tokens so that a long one keeps no health check waiting.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployments.continuous_batching import ContinuousBatching
from deployments.detokenizer import Detokenizer
from deployments.errors import BadRequest, InferenceFailed, LivepeerRayError, ModelBroken
from deployments.llm_engine import Engine, Progress, Prompt, Sampling
from deployments.loading import choose_device, one_line
from deployments.replica import DEADLINE_S, STUCK_S, Replica
from deployments.schemas.base import Completed
from deployments.schemas.llm import (
    Completion,
    FinishReason,
    LLMChunk,
    LLMRequest,
    LLMResult,
    Message,
    Usage,
)

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("ray.serve")

FLUSH_S = 0.04
"""Between the chunks of a stream: 25 a second read as a flow, and Serve carries some 600 items
a second a stream, which a hundred streams of single tokens would pass."""

MAX_CHUNK_CHARS = 2_000
"""JSON escapes a character in 12 bytes at most; a line of the event stream has 48 KiB."""

ENGINE_REFUSALS = (
    *(ValueError, TypeError, AttributeError, KeyError, NotImplementedError),  # the architecture
    MemoryError,  # no room for a cache beside the model
)


class LLMReplica(Replica[LLMRequest, Progress, LLMResult]):
    """Text from a chat."""

    _engine: Engine
    _tokenizer: Any

    def load(self, snapshot: Path) -> None:
        """Loads model and tokenizer and starts the engine.

        Raises:
            ModelBroken: the engine cannot run this model.
        """
        from transformers import AutoConfig, AutoModelForCausalLM

        self.imported()
        config = AutoConfig.from_pretrained(snapshot, local_files_only=True)
        device = choose_device()
        self.load_tokenizer(snapshot)
        model = AutoModelForCausalLM.from_pretrained(
            snapshot, dtype=_choose_dtype(config, device), local_files_only=True
        )
        self.start_up.mark("weights")
        model.to(device)
        try:
            self._engine = ContinuousBatching(
                model.eval(),
                end_token=self._tokenizer.eos_token_id,
                gpu_share=self.args.gpu_share,
            )
        except ENGINE_REFUSALS as error:
            raise ModelBroken(
                f"{self.args.model_id}: transformers' continuous batching does not run this "
                f"model here ({one_line(error)}); serve another one, or give it a larger GPU if "
                "it is memory that is short"
            ) from error

    def load_tokenizer(self, snapshot: Path) -> None:
        """Loads the tokenizer, to be called by `load`: prompts and answers are text here alone."""
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(snapshot, local_files_only=True)

    def warm_up_request(self) -> LLMRequest:
        """Returns a chat of one message."""
        return LLMRequest(messages=(Message(role="user", content="Hello"),), max_tokens=4)

    def describe(self, request: LLMRequest) -> str:
        """Returns `3 messages, up to 256 tokens`; never what the messages say."""
        return f"{len(request.messages)} messages, up to {request.max_tokens} tokens"

    def infer(
        self,
        request: LLMRequest,
        raise_if_cancelled: Callable[[], None],  # noqa: ARG002 - nobody cancels a warm-up
    ) -> Progress:
        """Generates while the caller waits, in the model thread. For the warm-up only.

        Raises:
            ModelBroken: the engine does not run this model.
        """

        async def generate() -> Progress:
            return await self._generate(self._prompt(request))

        progress = asyncio.run(generate())
        if not progress.tokens:
            raise ModelBroken(f"{self.args.model_id}: the warm-up generated nothing")
        return progress

    def encode(self, request: LLMRequest, raw: Progress) -> LLMResult:
        """Returns the answer as text."""
        prompt = self._prompt(request)
        return self._result(self._completion(), prompt, raw)

    async def run(
        self, request: LLMRequest, *, timeout_s: float = DEADLINE_S
    ) -> Completed[LLMResult]:
        """Runs one request beside all others; see `Replica.run`."""
        began = time.perf_counter()
        completion = self._completion()
        try:
            async with asyncio.timeout(timeout_s):
                prompt = await self._tokenized(request)
                result = self._result(completion, prompt, await self._generate(prompt))
        except TimeoutError:
            raise _too_late(timeout_s) from None
        return Completed(
            result=result, replica=self.replica_id, compute_s=time.perf_counter() - began
        )

    async def stream(
        self, request: LLMRequest, *, timeout_s: float = DEADLINE_S
    ) -> AsyncGenerator[LLMChunk, None]:
        """Runs one request and yields its text as it comes; closing it ends the request.

        When its time is over the text ends with the finish reason `length`.

        Raises:
            BadRequest: nobody could serve this request.
            InferenceFailed: the engine failed this request, or its time was over before the
                first token.
            ReplicaBroken: the engine has ended.
        """
        began = time.perf_counter()
        clock = asyncio.get_running_loop().time
        ends_at = clock() + timeout_s
        completion = self._completion()
        prompt = await self._tokenized(request)
        detokenizer = Detokenizer(self._tokenizer)
        chunk: LLMChunk | None = None
        async with aclosing(self._progress(prompt, stream=True)) as progresses:
            while clock() < ends_at:
                try:
                    async with asyncio.timeout_at(ends_at):
                        progress = await anext(progresses)
                except TimeoutError:
                    break
                text = detokenizer.feed(self._spoken(progress), last=progress.finished)
                chunk = LLMChunk(
                    completion=completion,
                    text="",
                    usage=_usage(prompt, progress),
                    replica=self.replica_id,
                    compute_s=time.perf_counter() - began,
                )
                for start in range(0, len(text), MAX_CHUNK_CHARS):
                    yield replace(chunk, text=text[start : start + MAX_CHUNK_CHARS])
                if progress.finished:
                    yield chunk.finish(self._finish_reason(progress))
                    return
                if text:
                    # What is generated meanwhile comes in one piece.
                    await asyncio.sleep(FLUSH_S)
        if chunk is None:
            raise _too_late(timeout_s)
        yield chunk.finish("length")

    async def check_health(self) -> None:
        """Raises when this replica can serve no more; Serve then replaces it."""
        await super().check_health()
        if (late_s := self._engine.late_s) > STUCK_S:
            # The others would wait for it until their time is over, and Serve for them.
            self._engine.give_up(f"the engine is stuck, it owes an answer for {late_s:.0f} s")
        if self._engine.fault is not None:
            raise LivepeerRayError(f"{self.args.model_id}: {self._engine.fault}")

    def close(self) -> None:
        """Ends the engine and the threads."""
        self._engine.close()
        super().close()

    async def _tokenized(self, request: LLMRequest) -> Prompt:
        return await asyncio.wrap_future(self._model_executor.submit(self._prompt, request))

    def _prompt(self, request: LLMRequest) -> Prompt:
        """Returns the request as the engine takes it.

        Raises:
            BadRequest: the model cannot take these messages or this sampling.
        """
        engine = self._engine
        if request.top_k > engine.vocabulary:
            raise BadRequest(
                f"top_k: {request.top_k} is more than the {engine.vocabulary} tokens "
                f"of {self.args.model_id}"
            )
        tokens = self._template(request.messages)
        # Either would end the engine, and with it the requests of everybody else.
        if not tokens:
            raise BadRequest(f"messages: the chat template of {self.args.model_id} leaves nothing")
        if max(tokens) >= engine.vocabulary:
            unknown = self._tokenizer.convert_ids_to_tokens(max(tokens))
            raise BadRequest(f"messages: {self.args.model_id} does not know {unknown!r}")
        room = engine.context_tokens - len(tokens)
        if room < 1:
            raise BadRequest(
                f"messages: {len(tokens)} tokens do not fit in the context of "
                f"{self.args.model_id}, which is {engine.context_tokens} with the answer"
            )
        return Prompt(
            tokens=tokens,
            max_tokens=min(request.max_tokens, room),
            sampling=Sampling.of(
                temperature=request.temperature,
                top_k=request.top_k,
                top_p=request.top_p,
                vocabulary=engine.vocabulary,
            ),
        )

    def _template(self, messages: Sequence[Message]) -> list[int]:
        """Returns the chat as tokens, in the model's own form or, without one, as plain text."""
        from jinja2 import TemplateError

        if self._tokenizer.chat_template is None:
            lines = [f"{message.role}: {message.content}\n" for message in messages]
            return list(self._tokenizer("".join([*lines, "assistant:"]))["input_ids"])
        try:
            encoded = self._tokenizer.apply_chat_template(
                [message.model_dump() for message in messages],
                add_generation_prompt=True,
                return_dict=True,
            )
        except TemplateError as error:
            # Templates refuse on purpose: a system message, say, or two of a role in a row.
            raise BadRequest(
                f"messages: the chat template of {self.args.model_id} refuses them: {error}"
            ) from None
        return list(encoded["input_ids"])

    def _progress(self, prompt: Prompt, *, stream: bool) -> AsyncGenerator[Progress, None]:
        return self._engine.generate(prompt, stream=stream)

    async def _generate(self, prompt: Prompt) -> Progress:
        async with aclosing(self._progress(prompt, stream=False)) as progresses:
            return await anext(progresses)

    def _completion(self) -> Completion:
        return Completion(
            id=f"chatcmpl-{secrets.token_hex(12)}",
            model=self.args.model_id,
            created_s=int(time.time()),
        )

    def _result(self, completion: Completion, prompt: Prompt, progress: Progress) -> LLMResult:
        text = Detokenizer(self._tokenizer).feed(self._spoken(progress), last=True)
        return LLMResult(
            completion=completion,
            text=text,
            finish_reason=self._finish_reason(progress),
            usage=_usage(prompt, progress),
        )

    def _spoken(self, progress: Progress) -> Sequence[int]:
        """The answer without the token that ended it, which not every tokenizer calls special."""
        stopped = progress.tokens and progress.tokens[-1] in self._engine.end_tokens
        return progress.tokens[:-1] if stopped else progress.tokens

    def _finish_reason(self, progress: Progress) -> FinishReason:
        return "stop" if progress.tokens[-1] in self._engine.end_tokens else "length"


def _too_late(timeout_s: float) -> InferenceFailed:
    return InferenceFailed(f"stopped after {timeout_s:.0f} s: its time was over")


def _usage(prompt: Prompt, progress: Progress) -> Usage:
    return Usage(prompt_tokens=len(prompt.tokens), completion_tokens=len(progress.tokens))


def _choose_dtype(config: Any, device: "torch.device") -> "torch.dtype":
    """Returns what the weights were published in if that has 16 bits; CPUs compute in float32."""
    import torch

    if device.type == "cpu":
        return torch.float32
    half = (torch.float16, torch.bfloat16)
    return config.dtype if config.dtype in half else torch.bfloat16
