"""Streamed answers: an event stream in the orchestrator's form, begun only when it has a chunk.

The orchestrator reads lines of at most 64 KiB, indexes `choices[0]` of each, stops at the first
`finish_reason` and hangs on what follows it (go-livepeer, server/ai_http.go `AIResults`). No
error exists in mid-stream. So the first chunk is waited for before the POST, while a failure
can still be answered as one; a failure later ends the text with the finish reason `error`,
which is all that a client can be told, and the time limit ends it with `length`.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator

from cluster.errors import JobFailed
from deployments.schemas.base import Chunk

logger = logging.getLogger(__name__)

MAX_LINE_BYTES = 48 * 1024
"""Of the orchestrator's 64 KiB: the gateway escapes a line anew, which can make it longer."""

MAX_STREAM_S = 9.5 * 60
"""From the POST on; after ten minutes the orchestrator cuts it."""


class Stream:
    """One streamed answer, an `Answer` in `Delivery`'s eyes."""

    content_type = "text/event-stream"
    length_bytes = None
    """Not known before its end."""

    def __init__(self, *, name: str, first: Chunk, rest: AsyncGenerator[Chunk, None]) -> None:
        """Takes over the generator: from here on only `aclose` closes it.

        Args:
            name: of the job, for the log.
            first: the chunk that was waited for.
            rest: the chunks after it.
        """
        self._name = name
        self.last = first
        """The newest chunk that was taken from the replica."""
        self._rest = rest
        self._rest_in_use = asyncio.Lock()
        self._cut_at: float | None = None
        self._waiting: asyncio.Timeout | None = None
        self.begun = False
        """Whether any of it may have been sent; it can never be sent again."""
        self.failed = False
        """Whether its end is not the model's own."""

    @classmethod
    async def begin(cls, chunks: AsyncGenerator[Chunk, None], *, name: str) -> "Stream":
        """Waits for the first chunk.

        Raises:
            JobError: the work failed before it.
        """
        try:
            return cls(name=name, first=await anext(chunks), rest=chunks)
        except StopAsyncIteration:
            raise JobFailed("the replica ended the stream before its first chunk") from None
        except BaseException:
            await chunks.aclose()
            raise

    def cut(self, *, at: float) -> None:
        """Ends the text at the event loop's time `at`, at once if that has passed."""
        self._cut_at = at if self._cut_at is None else min(at, self._cut_at)
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(self._cut_at)

    async def aclose(self) -> None:
        """Stops the work behind it, if it has not ended."""
        # A POST that broke off may still wait for a chunk in a task of aiohttp's.
        self.cut(at=asyncio.get_running_loop().time())
        async with self._rest_in_use:
            await self._rest.aclose()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body: an event a chunk, the finishing one last."""
        async for chunk in self.read():
            yield event(chunk)

    async def read(self) -> AsyncIterator[Chunk]:
        """Yields the chunks, the finishing one last."""
        self.begun = True
        self.cut(at=asyncio.get_running_loop().time() + MAX_STREAM_S)
        yield self.last
        while not self.last.finishes:
            self.last = await self._next()
            yield self.last

    async def _next(self) -> Chunk:
        """Returns the next chunk, one that finishes if there is none."""
        try:
            async with self._rest_in_use, asyncio.timeout_at(self._cut_at) as self._waiting:
                return await anext(self._rest)
        except TimeoutError:
            return self._cut_short("length", "its time is over")
        except StopAsyncIteration:
            return self._cut_short("error", "the replica ended it without a finish")
        except Exception as error:  # noqa: BLE001 - the client has to see that it is not whole
            return self._cut_short("error", f"{type(error).__name__}: {error}")
        finally:
            self._waiting = None

    def _cut_short(self, reason: str, why: str) -> Chunk:
        logger.warning("%s: the stream was cut short: %s", self._name, why)
        self.failed = True
        return self.last.finish(reason)


def event(chunk: Chunk) -> bytes:
    """Returns `data: {json}` and a blank line.

    Raises:
        ValueError: the line is too long; whoever makes chunks must split them.
    """
    line = b"data: " + json.dumps(chunk.document(), separators=(",", ":")).encode()
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"a chunk of {len(line)} bytes, more than {MAX_LINE_BYTES}")
    return line + b"\n\n"
