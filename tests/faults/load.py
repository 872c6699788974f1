"""Callers: a new one comes at a steady pace, whatever became of the ones before."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

from tests.faults.cluster import REPLICAS
from tests.faults.model import JOB_S
from tests.faults.world import World

PER_S = 0.85 * REPLICAS / JOB_S
"""All replicas work most of the time, and there is a free slot now and then: an orchestrator that
cannot reach its worker still sends it jobs."""

CALL_S = 300.0

_NUMBERS = itertools.count()


@dataclass(slots=True)
class Load:
    """The callers of one world."""

    coming: asyncio.Task[None]
    calling: set[asyncio.Task[None]]

    def no_more(self) -> None:
        """Has no more come; who has come goes on waiting for his answer."""
        self.coming.cancel()

    def waiting(self) -> int:
        """How many wait for an answer, or have yet to ask."""
        return len(self.calling)


@asynccontextmanager
async def callers(world: World) -> AsyncIterator[Load]:
    """Has callers come and ask for a picture each, until the context ends.

    Every one asks for another picture, over all faults: requests that were there when replicas
    died are refused for a while, and these are innocent. What they are told is in the
    orchestrator's ledger.
    """
    calling: set[asyncio.Task[None]] = set()
    connector = aiohttp.TCPConnector(ssl=False, limit=0)  # it may be another certificate each time
    timeout = aiohttp.ClientTimeout(total=CALL_S)
    async with aiohttp.ClientSession(world.url, connector=connector, timeout=timeout) as http:

        async def come() -> None:
            for number in _NUMBERS:
                caller = asyncio.create_task(_call(world, http, number))
                calling.add(caller)
                caller.add_done_callback(calling.discard)
                await asyncio.sleep(1 / PER_S)

        coming = asyncio.create_task(come())
        try:
            yield Load(coming, calling)
        finally:
            tasks = [coming, *calling]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _call(world: World, http: aiohttp.ClientSession, number: int) -> None:
    # Nobody has to be there, or to answer.
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        await world.door.ask(http, f"picture {number}")
