"""Many generations at once on one causal language model: transformers' continuous batching.

The library's own thread computes a token for every running request in each pass. One thread of
ours takes what it produces to the event loop of whoever asked. What had to be found out about
transformers 5.23, and holds the shape of this module:

- Sampling parameters that it does not check end its thread and every request in it, so they
  are brought into its domain here (`Sampling`).
- So does a request longer than its cache (`Engine.context_tokens` is the bound to check), an
  empty one, and one with a token that the model has no embedding for.
- A cancelled request is never heard of again: who cancels must not wait.
- With asynchronous batches, cancelling a request whose last pass filled a page of the cache
  ends the thread (`update_batch` looks for a freed block table), so they are off.
"""

import asyncio
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from deployments.errors import InferenceFailed, ReplicaBroken, ReplicaError
from deployments.schemas.llm import ALL_TOKENS

logger = logging.getLogger("ray.serve")

GREEDY_BELOW_TEMPERATURE = 0.01
"""Logits divided by less overflow half precision; the most likely token wins there anyway."""

CPU_CACHE_TOKENS = 16_384
CPU_BATCH_TOKENS = 512
"""The library would take 60 % of the machine's memory, which GPUs have to themselves and CPUs
share with everybody: on a CPU the cache holds this much text, and a pass reads this much."""

GPU_CACHE_SHARE = 0.8
"""Of the memory that is free on a GPU of its own the library's cache takes this much; where models
share one, of that model's share of it, so that those that load later find some."""

POLL_S = 0.1
"""How soon the death of the library's thread is noticed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a token is drawn, in the domain of the library."""

    temperature: float
    top_k: int
    top_p: float

    @classmethod
    def of(cls, *, temperature: float, top_k: int, top_p: float, vocabulary: int) -> "Sampling":
        """Translates a request's values.

        Args:
            temperature: at least 0; 0 is greedy.
            top_k: tokens to draw from, at most `vocabulary`; -1 or 0 for all.
            top_p: from 0 to 1, the probability that the tokens to draw from have together.
            vocabulary: how many tokens the model scores.
        """
        if temperature < GREEDY_BELOW_TEMPERATURE or top_p == 0:
            # Both: of two tokens with the same score, top_k alone keeps two, top_p one.
            return cls(temperature=1.0, top_k=1, top_p=0.0)
        return cls(
            temperature=float(temperature),
            top_k=vocabulary if top_k in (ALL_TOKENS, 0) else top_k,
            top_p=float(top_p),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a request has so far."""

    tokens: Sequence[int]
    """All that were generated, from the first; the end token is one of them."""
    finished: bool


class _Mailbox:
    """The latest output of one request, for the event loop that asked.

    Outputs are cumulative, so one that was not yet looked at is simply replaced: a slow reader
    gets more tokens at a time.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._filled = asyncio.Event()
        self._latest: Progress | ReplicaError | None = None

    def put(self, latest: Progress | ReplicaError) -> None:
        """Takes an output, from any thread."""
        self._latest = latest
        self._loop.call_soon_threadsafe(self._filled.set)

    async def take(self) -> Progress:
        """Waits for a new output.

        Raises:
            ReplicaError: the request, or the whole engine, failed.
        """
        await self._filled.wait()
        self._filled.clear()
        if isinstance(self._latest, ReplicaError):
            raise self._latest
        assert self._latest is not None  # noqa: S101 - it was filled
        return self._latest


class Engine:
    """Continuous batching on one loaded model.

    Attributes:
        context_tokens: prompt and answer of one request together.
        vocabulary: how many tokens the model scores.
        end_tokens: those that end an answer.
    """

    def __init__(self, model: Any, *, end_token: int | None, gpu_share: float = 1.0) -> None:
        """Starts the engine.

        Args:
            model: a transformers causal language model, on its device.
            end_token: the tokenizer's, for models that do not name theirs.
            gpu_share: part of the GPU that is this model's, up to 1.
        """
        from transformers import ContinuousBatchingConfig
        from transformers.generation.continuous_batching.model_runner import (
            infer_max_single_request_tokens,
        )

        text_config = model.config.get_text_config()
        self.vocabulary: int = text_config.vocab_size
        generation = deepcopy(model.generation_config)
        if generation.eos_token_id is None:
            generation.eos_token_id = end_token
        ends = generation.eos_token_id
        self.end_tokens = frozenset(ends if isinstance(ends, list) else [ends]) - {None}
        # A request may set only what the engine was started with, and a value that does
        # nothing counts as not set.
        generation.do_sample = True
        generation.temperature, generation.top_k, generation.top_p = 0.7, 50, 0.9
        generation.num_return_sequences = generation.num_beams = 1

        config = ContinuousBatchingConfig(per_request_processors=True, use_async_batching=False)
        config.max_memory_percent = GPU_CACHE_SHARE * gpu_share
        if model.device.type == "cpu":
            config.num_blocks = CPU_CACHE_TOKENS // config.page_size
            config.max_batch_tokens = CPU_BATCH_TOKENS
        self._manager: Any = model.init_continuous_batching(
            generation_config=generation, continuous_batching_config=config
        )
        # Allocates the cache; with CUDA graphs, also captures them.
        self._manager.warmup()
        fits = infer_max_single_request_tokens(self._manager.batch_processor.cache)
        trained = getattr(text_config, "max_position_embeddings", None) or fits
        self.context_tokens = int(min(trained, fits))

        self._lock = threading.Lock()
        self._mailboxes: dict[str, _Mailbox] = {}
        self._cancelled_at: deque[float] = deque()
        self._fault: str | None = None
        self._closing = threading.Event()
        self._manager.start()
        self._router = threading.Thread(target=self._route, name="llm-router", daemon=True)
        self._router.start()

    @property
    def fault(self) -> str | None:
        """Why the engine generates nothing any more; None while it works."""
        return self._fault

    @property
    def running(self) -> int:
        """Requests that are waited for."""
        return len(self._mailboxes)

    @property
    def late_s(self) -> float:
        """Since when a cancelled request should have been dropped; 0 while none waits for that.

        The library's thread drops them before every pass, and ten times a second without one.
        """
        waiting = self._manager.cancel_queue.qsize()
        while len(self._cancelled_at) > waiting:
            self._cancelled_at.popleft()
        return time.monotonic() - self._cancelled_at[0] if self._cancelled_at else 0.0

    async def generate(
        self, prompt: Sequence[int], *, max_tokens: int, sampling: Sampling, stream: bool
    ) -> AsyncGenerator[Progress, None]:
        """Generates until an end token or `max_tokens`. Closing the generator ends the request.

        Args:
            prompt: at least one, each below `vocabulary`; with `max_tokens` at most
                `context_tokens`.
            max_tokens: of the answer.
            sampling: how tokens are drawn.
            stream: whether to yield on the way; otherwise once, at the end.

        Raises:
            InferenceFailed: the request failed.
            ReplicaBroken: the whole engine has ended.
        """
        request_id = secrets.token_hex(8)
        mailbox = _Mailbox()
        with self._lock:
            if self._fault is not None:
                raise ReplicaBroken(self._fault)
            self._mailboxes[request_id] = mailbox
        finished = False
        try:
            self._manager.add_request(
                list(prompt),
                request_id=request_id,
                max_new_tokens=max_tokens,
                streaming=stream,
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
            )
            while not finished:
                progress = await mailbox.take()
                finished = progress.finished
                yield progress
        finally:
            with self._lock:
                del self._mailboxes[request_id]
            if not finished:
                self._manager.cancel_request(request_id)
                self._cancelled_at.append(time.monotonic())

    def give_up(self, fault: str) -> None:
        """Fails what runs and takes no more: an engine that hangs would keep all waiting.

        Args:
            fault: why; what was known before stays.
        """
        with self._lock:
            self._fault = self._fault or " ".join(fault.split())[:300]
            for mailbox in self._mailboxes.values():
                mailbox.put(ReplicaBroken(self._fault))

    def close(self) -> None:
        """Ends the engine's threads; what still runs fails."""
        self._closing.set()
        self._router.join()
        self._manager.stop(block=True, hard_stop=True)
        self._manager.destroy()

    def _route(self) -> None:
        """Takes outputs to their mailboxes, in the router thread, until the engine ends."""
        try:
            while not self._closing.is_set() and self._manager.is_running():
                output = self._manager.get_result(timeout=POLL_S)
                if output is not None:
                    self._deliver(output)
            cause = self._manager.background_thread_status.fatal_error
        except Exception as error:  # noqa: BLE001 - of any kind: nobody may wait for this thread
            cause = error
        fault = f"the engine has ended: {type(cause).__name__}: {cause}" if cause else "closed"
        if cause:
            logger.error("%s", fault)
        self.give_up(fault)

    def _deliver(self, output: Any) -> None:
        latest: Progress | ReplicaError
        if output.error is not None:
            # An engine that breaks down fails all that it has, each with the error of one.
            down = self._manager.background_thread_status.can_accept_new_requests() is not None
            kind = ReplicaBroken if down else InferenceFailed
            latest = kind(" ".join(str(output.error).split())[:300])
        else:
            latest = Progress(tokens=output.generated_tokens, finished=output.is_finished())
        with self._lock:
            # None for a request that was cancelled.
            if mailbox := self._mailboxes.get(output.request_id):
                mailbox.put(latest)
