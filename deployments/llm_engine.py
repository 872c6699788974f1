"""What an llm replica asks of an engine: many generations at once on one loaded model.

Two libraries stand behind it: transformers in `deployments.continuous_batching`, vLLM in
`deployments.vllm_engine`. Each computes in threads or processes of its own; what it produces
goes through mailboxes to the event loop of whoever asked. What is the same for both is here:
who waits for what, and how all of them hear that the engine has ended.
"""

import asyncio
import secrets
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from deployments.errors import ReplicaBroken, ReplicaError
from deployments.schemas.llm import ALL_TOKENS

GREEDY_BELOW_TEMPERATURE = 0.01
"""Logits divided by less overflow half precision; the most likely token wins there anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a token is drawn."""

    temperature: float
    """0: the most likely one; the others then mean nothing."""
    top_k: int
    """From 1 to the model's vocabulary."""
    top_p: float
    """Above 0, up to 1."""

    @classmethod
    def of(cls, *, temperature: float, top_k: int, top_p: float, vocabulary: int) -> "Sampling":
        """Brings a request's values into the domain of engines, which end at others.

        Args:
            temperature: at least 0; 0 is greedy.
            top_k: tokens to draw from, at most `vocabulary`; -1 or 0 for all.
            top_p: from 0 to 1, the probability that the tokens to draw from have together.
            vocabulary: how many tokens the model scores.
        """
        if temperature < GREEDY_BELOW_TEMPERATURE or top_p == 0:
            return cls(temperature=0.0, top_k=vocabulary, top_p=1.0)
        return cls(
            temperature=float(temperature),
            top_k=vocabulary if top_k in (ALL_TOKENS, 0) else top_k,
            top_p=float(top_p),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A request as an engine takes it."""

    tokens: Sequence[int]
    """At least one, each below the model's vocabulary."""
    max_tokens: int
    """Of the answer; with `tokens` at most the engine's context."""
    sampling: Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a request has so far."""

    tokens: Sequence[int]
    """All that were generated, from the first; the end token is one of them."""
    finished: bool


class Mailbox:
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


class Engine(ABC):
    """One loaded model that generates for many at once.

    Args:
        context_tokens: prompt and answer of one request together.
        vocabulary: how many tokens the model scores.
        end_tokens: those that end an answer, as a generation_config.json has them.
    """

    def __init__(
        self, *, context_tokens: int, vocabulary: int, end_tokens: Sequence[int] | int | None
    ) -> None:
        self.context_tokens = context_tokens
        self.vocabulary = vocabulary
        ends = [end_tokens] if end_tokens is None or isinstance(end_tokens, int) else end_tokens
        self.end_tokens = frozenset(token for token in ends if token is not None)
        self._lock = threading.Lock()
        self._mailboxes: dict[str, Mailbox] = {}
        self._fault: str | None = None

    @property
    def fault(self) -> str | None:
        """Why the engine generates nothing any more; None while it works."""
        return self._fault

    @property
    @abstractmethod
    def late_s(self) -> float:
        """How long it has owed something that takes it a moment; 0 while it owes nothing."""

    @abstractmethod
    def close(self) -> None:
        """Ends the engine's threads and processes; what still runs fails."""

    async def generate(self, prompt: Prompt, *, stream: bool) -> AsyncGenerator[Progress, None]:
        """Generates until an end token or `max_tokens`. Closing the generator ends the request.

        Args:
            prompt: what to continue.
            stream: whether to yield on the way; otherwise once, at the end.

        Raises:
            BadRequest: the engine cannot take this request.
            InferenceFailed: the request failed.
            ReplicaBroken: the whole engine has ended.
        """
        request_id = secrets.token_hex(8)
        mailbox = Mailbox()
        with self._lock:
            if self._fault is not None:
                raise ReplicaBroken(self._fault)
            self._mailboxes[request_id] = mailbox
        try:
            cancel = self._submit(request_id, prompt, stream=stream)
            finished = False
            try:
                while not finished:
                    progress = await mailbox.take()
                    finished = progress.finished
                    yield progress
            finally:
                if not finished:
                    cancel()
        finally:
            with self._lock:
                del self._mailboxes[request_id]

    def give_up(self, fault: str) -> None:
        """Fails what runs and takes no more: an engine that hangs would keep all waiting.

        Args:
            fault: why; what was known before stays.
        """
        with self._lock:
            self._fault = self._fault or " ".join(fault.split())[:300]
            for mailbox in self._mailboxes.values():
                mailbox.put(ReplicaBroken(self._fault))

    @abstractmethod
    def _submit(self, request_id: str, prompt: Prompt, *, stream: bool) -> Callable[[], None]:
        """Starts a request, whose outputs are then posted.

        Returns:
            What ends it early; it must not wait.
        """

    def _post(self, request_id: str, latest: Progress | ReplicaError) -> None:
        """Hands an output to whoever waits for it; nobody does once a request was cancelled."""
        with self._lock:
            if mailbox := self._mailboxes.get(request_id):
                mailbox.put(latest)
