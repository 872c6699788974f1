"""Jobs whose replica died run again on another one; requests that kill replicas do not.

Serve never runs a started request twice, for it may have had effects. Ours have none, so
running it again is safe until something of the answer was sent.

A request that kills its replica (a bug in a library, or more host memory than there is) would go
on to kill the next one and, sent again and again, every replica of the cluster in turn. One that
was there at two deaths is refused for a while; a death counts once, however many jobs of the same
request saw it. Innocent ones that shared a replica with it may be refused too, so it is done in
the words that let another orchestrator try.
"""

import asyncio
import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TypeVar

from cluster.bridge.job import Work
from cluster.errors import InsufficientCapacity, ReplicaLost
from deployments.schemas.base import Request

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""A node that goes takes several replicas one after the other; more than two of them in one job
is no coincidence."""

PAUSE_S = 0.2
"""Before the next attempt: what Serve's routers need to hear of a death (measured, Ray 2.60)."""

DEADLY = 2
"""Deaths after which a request is refused."""

QUARANTINE_S = 600.0
"""Since the latest death."""

MAX_SUSPECTS = 1_000

T = TypeVar("T")


class Retries:
    """Runs attempts, and remembers what was there when replicas died."""

    def __init__(self) -> None:
        """Starts without suspicion."""
        self._suspects: OrderedDict[bytes, tuple[frozenset[str], float]] = OrderedDict()
        """The replicas that died under each request, and when it was noted that the latest of them
        did; in the order of these times."""

    async def run(
        self, attempt: Callable[[], Awaitable[T]], *, work: Work, request: Request, name: str
    ) -> T:
        """Returns what the first attempt returns whose replica lives.

        Args:
            attempt: starts the work from its beginning.
            work: what is asked for.
            request: the same, validated; with the input file in it.
            name: of the job, for the log.

        Raises:
            InsufficientCapacity: every attempt lost its replica, or this request kills them.
            JobError: what an attempt raised otherwise.
        """
        self._forget()
        if self._suspects:
            self._refuse_killers(await _fingerprint(work, request))
        attempts = 0
        dead: set[str] = set()
        while True:
            try:
                return await attempt()
            except ReplicaLost as error:
                # A replica that is dead already is still chosen for a moment. The job has not
                # begun then: it is no second death, and no attempt.
                if not error.dead or error.dead not in dead:
                    attempts += 1
                    if error.dead:
                        dead.add(error.dead)
                        fingerprint = await _fingerprint(work, request)
                        self._note(fingerprint, error.dead)
                        self._refuse_killers(fingerprint)
                    if attempts == MAX_ATTEMPTS:
                        raise
                    logger.warning("%s: %s; running it again", name, error)
            await asyncio.sleep(PAUSE_S)

    def _note(self, fingerprint: bytes, dead: str) -> None:
        self._forget()
        replicas, _ = self._suspects.get(fingerprint, (frozenset(), 0.0))
        if dead in replicas:
            return
        self._suspects[fingerprint] = replicas | {dead}, asyncio.get_running_loop().time()
        self._suspects.move_to_end(fingerprint)
        while len(self._suspects) > MAX_SUSPECTS:
            self._suspects.popitem(last=False)

    def _forget(self) -> None:
        too_old = asyncio.get_running_loop().time() - QUARANTINE_S
        while self._suspects and next(iter(self._suspects.values()))[1] <= too_old:
            self._suspects.popitem(last=False)

    def _refuse_killers(self, fingerprint: bytes) -> None:
        replicas, _ = self._suspects.get(fingerprint, (frozenset(), 0.0))
        if len(replicas) >= DEADLY:
            raise InsufficientCapacity(
                f"this request was there when {len(replicas)} replicas died, and is refused for a "
                "while"
            )


async def _fingerprint(work: Work, request: Request) -> bytes:
    """What tells the same request from others, its input file included."""

    def digest() -> bytes:
        file = getattr(request, work.pipeline.file, b"") if work.pipeline.file else b""
        parameters = json.dumps([work.key, dict(work.parameters)], sort_keys=True)
        return hashlib.sha256(parameters.encode(errors="replace") + b"\0" + file).digest()

    # A file may have 300 MB.
    return await asyncio.to_thread(digest)
