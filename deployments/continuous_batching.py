"""Many generations at once on one causal language model: transformers' continuous batching.

The library's own thread computes a token for every running request in each pass. One thread of
ours posts what it produces. What had to be found out about transformers 5.23, and holds the shape
of this module:

- Sampling parameters that it does not check end its thread and every request in it, so they
  are brought into its domain (`Sampling`, `_drawing`).
- So does a request longer than its cache (`Engine.context_tokens` is the bound to check), an
  empty one, and one with a token that the model has no embedding for.
- A cancelled request is never heard of again: who cancels must not wait.
- With asynchronous batches, cancelling a request whose last pass filled a page of the cache
  ends the thread (`update_batch` looks for a freed block table), so they are off.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from deployments.errors import InferenceFailed, ReplicaBroken
from deployments.llm_engine import Engine, Progress, Prompt, Sampling

logger = logging.getLogger("ray.serve")

CPU_CACHE_TOKENS = 16_384
CPU_BATCH_TOKENS = 512
"""The library would take 60 % of the machine's memory, which GPUs have to themselves and CPUs
share with everybody: on a CPU the cache holds this much text, and a pass reads this much."""

GPU_CACHE_SHARE = 0.8
"""Of the memory that is free on a GPU of its own the library's cache takes this much; where models
share one, of that model's share of it, so that those that load later find some."""

POLL_S = 0.1
"""How soon the death of the library's thread is noticed."""


class ContinuousBatching(Engine):
    """transformers' engine, in threads of this process.

    Args:
        model: a transformers causal language model, on its device.
        end_token: the tokenizer's, for models that do not name theirs.
        gpu_share: part of the GPU that is this model's, up to 1.
    """

    def __init__(self, model: Any, *, end_token: int | None, gpu_share: float = 1.0) -> None:
        from transformers import ContinuousBatchingConfig
        from transformers.generation.continuous_batching.model_runner import (
            infer_max_single_request_tokens,
        )

        from deployments.sampling import sort_once  # imports transformers

        text_config = model.config.get_text_config()
        generation = deepcopy(model.generation_config)
        if generation.eos_token_id is None:
            generation.eos_token_id = end_token
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
        sort_once(self._manager.logit_processor.logits_processor)
        # Allocates the cache; with CUDA graphs, also captures them.
        self._manager.warmup()
        fits = infer_max_single_request_tokens(self._manager.batch_processor.cache)
        trained = getattr(text_config, "max_position_embeddings", None) or fits
        super().__init__(
            context_tokens=int(min(trained, fits)),
            vocabulary=text_config.vocab_size,
            end_tokens=generation.eos_token_id,
        )
        self._cancelled_at: deque[float] = deque()
        self._closing = threading.Event()
        self._manager.start()
        self._router = threading.Thread(target=self._route, name="llm-router", daemon=True)
        self._router.start()

    @property
    def late_s(self) -> float:
        """How long ago a cancelled request should have been dropped; 0 while none waits for that.

        The library's thread drops them before every pass, and ten times a second without one.
        """
        waiting = self._manager.cancel_queue.qsize()
        while len(self._cancelled_at) > waiting:
            self._cancelled_at.popleft()
        return time.monotonic() - self._cancelled_at[0] if self._cancelled_at else 0.0

    def close(self) -> None:
        """Ends both threads; what still runs fails."""
        self._closing.set()
        self._router.join()
        self._manager.stop(block=True, hard_stop=True)
        self._manager.destroy()

    def _submit(self, request_id: str, prompt: Prompt, *, stream: bool) -> Callable[[], None]:
        self._manager.add_request(
            list(prompt.tokens),
            request_id=request_id,
            max_new_tokens=prompt.max_tokens,
            streaming=stream,
            **_drawing(prompt.sampling),
        )

        def cancel() -> None:
            self._manager.cancel_request(request_id)
            self._cancelled_at.append(time.monotonic())

        return cancel

    def _route(self) -> None:
        """Posts outputs, in the router thread, until the engine ends."""
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
        if output.error is not None:
            # An engine that breaks down fails all that it has, each with the error of one.
            down = self._manager.background_thread_status.can_accept_new_requests() is not None
            kind = ReplicaBroken if down else InferenceFailed
            self._post(output.request_id, kind(" ".join(str(output.error).split())[:300]))
        else:
            progress = Progress(tokens=output.generated_tokens, finished=output.is_finished())
            self._post(output.request_id, progress)


def _drawing(sampling: Sampling) -> dict[str, Any]:
    if not sampling.temperature:
        # Both: of two tokens with the same score, top_k alone keeps two, top_p one.
        return {"temperature": 1.0, "top_k": 1, "top_p": 0.0}
    return {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
    }
