"""llm on vLLM: the engine, and the replica that has it instead of transformers' one.

Written against vLLM 0.32, in whose environment alone this runs (`deployments.registry`); nothing
is imported from it before a replica loads. The model lies in processes that vLLM starts, one for
each of the replica's GPUs; prompts and answers go there and back as tokens. What shapes this
module:

- The engine belongs to the event loop that first asks it something. It has one of its own, in a
  thread, since the warm-up and the requests come from different loops.
- A cancelled request is dropped without a word, and a process that hangs says nothing either. So
  the engine is asked for a sign of life all the time; it answers between two passes.
- Without statistics and tokenizer it does only what nobody else does here.
- Its processes do not notice that a replica was killed, so somebody has to (`deployments.orphans`).
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from deployments.errors import BadRequest, InferenceFailed, ModelBroken, ReplicaError
from deployments.llm import LLMReplica
from deployments.llm_engine import Engine, Progress, Prompt
from deployments.loading import one_line
from deployments.orphans import take_children_along

logger = logging.getLogger("ray.serve")

GPU_MEMORY_SHARE = 0.9
"""Of a GPU's memory vLLM takes this much for weights, passes and cache together, of a shared one
this much of the model's part. It refuses to start where so much is not free."""

FIT_CONTEXT = -1
"""As `max_model_len`: the model's own or, where the cache has no room for that, what fits."""

WATCH_S = 1.0
"""Between two questions whether the engine lives, and two looks whether it died meanwhile."""


class VLLMReplica(LLMReplica):
    """Text from a chat, by vLLM."""

    def load(self, snapshot: Path) -> None:
        """Loads the tokenizer and starts the engine, which loads the model.

        Raises:
            ModelBroken: the engine cannot run this model.
        """
        # Nobody here should tell others what runs, unless the operator wants to.
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        from vllm import AsyncLLMEngine  # noqa: F401 - takes long, and counts as an import

        self.imported()
        take_children_along()
        self.load_tokenizer(snapshot)
        try:
            self._engine = VLLMEngine(
                snapshot, end_token=self._tokenizer.eos_token_id, gpu_share=self.args.gpu_share
            )
        except (RuntimeError, ValueError) as error:
            raise ModelBroken(
                f"{self.args.model_id}: vLLM does not run this model here ({one_line(error)}); its "
                "messages are in this replica's log. Give it more GPUs if it is memory that is "
                'short, or serve it without "engine"'
            ) from error
        self.start_up.mark("weights")


class VLLMEngine(Engine):
    """vLLM, in processes of its own, on all GPUs that this process sees.

    Args:
        snapshot: the model's files.
        end_token: the tokenizer's, for models that do not name theirs.
        gpu_share: part of the GPU that is this model's, up to 1.
    """

    def __init__(self, snapshot: Path, *, end_token: int | None, gpu_share: float = 1.0) -> None:
        import torch
        from vllm import AsyncEngineArgs, AsyncLLMEngine

        # Those that Ray gave this replica; on a CPU there is one device, which nobody counts.
        gpus = max(1, torch.cuda.device_count())
        self._llm: Any = AsyncLLMEngine.from_engine_args(
            AsyncEngineArgs(
                model=str(snapshot),
                skip_tokenizer_init=True,
                # CPUs compute in float32 here as in all replicas.
                dtype="auto" if torch.cuda.is_available() else "float32",
                max_model_len=FIT_CONTEXT,
                tensor_parallel_size=gpus,
                # Not Ray, whose workers would want GPUs besides those of this replica.
                distributed_executor_backend="mp" if gpus > 1 else None,
                gpu_memory_utilization=GPU_MEMORY_SHARE * gpu_share,
                disable_log_stats=True,
            )
        )
        config = self._llm.model_config
        super().__init__(
            context_tokens=config.max_model_len,
            vocabulary=config.get_vocab_size(),
            end_tokens=config.try_get_generation_config().get("eos_token_id", end_token),
        )
        self._question_at: float | None = None
        opened = Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._live(opened)), name="vllm", daemon=True
        )
        self._thread.start()
        self._loop, self._closing = opened.result()

    @property
    def late_s(self) -> float:
        """How long a sign of life is overdue."""
        question_at = self._question_at
        return 0.0 if question_at is None else time.monotonic() - question_at

    def close(self) -> None:
        """Ends the processes and the thread; what still runs fails."""
        self.give_up("closed")
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    def _submit(self, request_id: str, prompt: Prompt, *, stream: bool) -> Callable[[], None]:
        answer = self._answer(request_id, prompt, stream=stream)
        answering = asyncio.run_coroutine_threadsafe(answer, self._loop)

        def cancel() -> None:
            answering.cancel()

        return cancel

    async def _answer(self, request_id: str, prompt: Prompt, *, stream: bool) -> None:
        """Posts what becomes of a request. Cancelling this drops it."""
        from vllm import SamplingParams, TokensPrompt
        from vllm.exceptions import VLLMClientError
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            async for output in self._llm.generate(
                TokensPrompt(prompt_token_ids=list(prompt.tokens)),
                SamplingParams(
                    temperature=prompt.sampling.temperature,
                    top_k=prompt.sampling.top_k,
                    top_p=prompt.sampling.top_p,
                    max_tokens=prompt.max_tokens,
                    stop_token_ids=sorted(self.end_tokens),
                    detokenize=False,
                    output_kind=(
                        RequestOutputKind.CUMULATIVE if stream else RequestOutputKind.FINAL_ONLY
                    ),
                ),
                request_id,
            ):
                self._post(request_id, _latest(output))
        except EngineDeadError as error:
            self._ended(error)
        except VLLMClientError as error:
            self._post(request_id, BadRequest(one_line(error)))
        except Exception as error:  # noqa: BLE001 - of any kind: somebody waits for it
            # vLLM's own is empty and has the reason for its cause.
            self._post(request_id, InferenceFailed(one_line(error.__cause__ or error)))

    async def _live(
        self, opened: "Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]"
    ) -> None:
        """Runs the engine's loop until it is closed; what then still runs there is cancelled."""
        closing = asyncio.Event()
        watching = asyncio.create_task(self._watch())
        opened.set_result((asyncio.get_running_loop(), closing))
        await closing.wait()
        watching.cancel()
        self._llm.shutdown()

    async def _watch(self) -> None:
        """Asks for signs of life until there is none any more."""
        try:
            while True:
                self._question_at = time.monotonic()
                question = asyncio.ensure_future(self._llm.is_sleeping())
                while not question.done():
                    # Of an engine that died meanwhile the question is never answered.
                    await self._llm.check_health()
                    await asyncio.wait([question], timeout=WATCH_S)
                question.result()
                self._question_at = None
                await asyncio.sleep(WATCH_S)
        except Exception as error:  # noqa: BLE001 - of any kind: nobody may wait for this engine
            self._ended(error)

    def _ended(self, error: Exception) -> None:
        fault = f"the engine has ended: {one_line(error)}"
        if self.fault is None:
            logger.error("%s", fault)
        self.give_up(fault)


def _latest(output: Any) -> Progress | ReplicaError:
    """Returns what one of vLLM's outputs says."""
    (answer,) = output.outputs
    if answer.finish_reason not in (None, "stop", "length"):
        return InferenceFailed(f"vLLM ended the request: {answer.finish_reason}")
    # A copy: vLLM goes on writing to its own.
    return Progress(tokens=tuple(answer.token_ids), finished=output.finished)
