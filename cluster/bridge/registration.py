"""Being a remote AI worker: announce capacity, take jobs, leave.

One gRPC call stands for one registration; the orchestrator sends jobs down its stream and
learns our capacity from its request only. So a change of capacity is a new call, and there are
two ways (go-livepeer, core/ai_orchestrator.go):

- More of it is registered by a second stream with what came on top. Nothing is closed, so
  nothing can be lost, and the orchestrator goes on counting the jobs that it has out. When a few
  of these have come together, or no job has come for a while, one stream takes their place.
- Less of it takes a new stream with the whole, and the old ones are left once it stands. Jobs
  of theirs are still answered, for they are matched by task id alone; but the orchestrator
  forgets them when it counts. Until they are done it may send more than there is, which
  admission keeps for a moment. That is why not every change is made this way.

One stream per model would let a change of one model leave the others' streams alone; it would
also be a TLS connection per model, and a worker per model in the orchestrator's log.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from pydantic import SecretStr

from cluster.ai_models import ModelKey
from cluster.bridge.address import Address
from cluster.bridge.capabilities import capabilities
from cluster.bridge.job import Job
from cluster.bridge.peer import Peer
from cluster.bridge.state import RegistrationState
from cluster.bridge.stream import Stream, ended, open_stream
from cluster.capacity import Capacity
from cluster.errors import InvalidSecret, RegistrationError
from cluster.protocol import lp_rpc_pb2 as pb

logger = logging.getLogger(__name__)

BACKOFF_FIRST_S, BACKOFF_FACTOR, BACKOFF_MAX_S, BACKOFF_JITTER = 0.5, 1.5, 60.0, 0.5

HEALTHY_S = 30.0
"""A registration that stood this long was no failure: the next pause is short again."""

COALESCE_S = 0.5
"""Changes of capacity within this time are one re-registration."""

OVERLAP_S = 0.05
"""An old registration outlives the beginning of the next by so much: nothing tells when the
orchestrator has really begun it, only when it should have (`ROUND_TRIPS` in stream.py)."""

MAX_STREAMS, IDLE_S = 8, 30.0
"""So many registrations at most, and one alone after so long without a job."""

HARDWARE_FIRST_S, HARDWARE_S = 5.0, 0.5
"""For asking all nodes for their GPUs, at the first time and later: it is information only, and
capacity should not wait for it."""


class WorkerRegistration:
    """Keeps one worker registered with one orchestrator, with the latest capacity."""

    def __init__(
        self,
        *,
        address: Address,
        secret: SecretStr,
        version: str,
        on_job: Callable[[Job], Awaitable[None]],
        pin: str | None = None,
        read_hardware: Callable[[], list[pb.HardwareInformation]] = list,
    ) -> None:
        """Connects nothing yet; see `run`.

        Args:
            address: of the orchestrator.
            secret: its -orchSecret.
            version: the go-livepeer version to advertise.
            on_job: called for every job, in the event loop; the next is read when it returns.
            pin: SHA-256 fingerprint of its certificate.
            read_hardware: blocking; asked anew for every registration.
        """
        self._address = address
        self._secret = secret
        self._version = version
        self._on_job = on_job
        self._pin = pin
        self._read_hardware = read_hardware
        self._wanted = Capacity()
        self._told: Capacity | None = Capacity()
        """What the streams advertise together; None where that has to be said anew."""
        self._changed = asyncio.Event()
        self._streams: list[Stream] = []
        self._leaving: set[asyncio.Task[None]] = set()
        self._last_peer: Peer | None = None
        self._problem = ""
        self._hardware: list[pb.HardwareInformation] = []
        self._asking: asyncio.Task[None] | None = None

    @property
    def state(self) -> RegistrationState:
        """Where this registration stands now."""
        registered = any(not stream.reader.done() for stream in self._streams)
        return RegistrationState(
            orchestrator=self._address.url,
            registered=registered,
            detail=self._problem or ("" if self._wanted else "no capacity to offer"),
            certificate=self._last_peer.fingerprint if self._last_peer else "",
            advertised=self._told or Capacity(),
        )

    def announce(self, capacity: Capacity) -> None:
        """Makes this the capacity that the orchestrator knows; nothing means not registered.

        It knows every model as if nobody asked for another one: a job that finds no card any more
        is refused, and its gateway asks another orchestrator.
        """
        self._wanted = capacity.each_alone()
        self._changed.set()

    async def run(self) -> None:
        """Registers, and again whenever that is needed, until cancelled.

        Leaves when cancelled: all streams are closed before this returns.

        Raises:
            InvalidSecret: trying again would not help.
        """
        failures = 0
        try:
            while True:
                self._changed.clear()
                try:
                    await self._register()
                    await self._until_something_changes()
                except InvalidSecret:
                    raise
                except RegistrationError as error:
                    if self._was_healthy():
                        failures = 0
                    self._problem = str(error)
                    await self._forget_ended()
                    pause_s = backoff_s(failures)
                    failures += 1
                    logger.warning("%s; trying again in %.1f s", error, pause_s)
                    await self._pause(pause_s)
        finally:
            self._leave(self._streams)
            await asyncio.gather(*self._leaving)

    async def _register(self) -> None:
        """Makes the streams tell the wanted capacity."""
        wanted, told = self._wanted, self._told
        if wanted == told:
            return
        if not wanted:
            logger.info("no capacity: leaving %s", self._address)
            self._leave(self._streams)
            self._streams, self._told = [], wanted
            return
        growth = None
        if told and len(self._streams) < MAX_STREAMS:
            growth = wanted.growth_over(told)
        stream = await self._open(growth or wanted)
        if growth:
            self._streams.append(stream)
        else:
            self._leave(self._streams, after_s=OVERLAP_S)
            self._streams = [stream]
        self._told, self._last_peer, self._problem = wanted, stream.peer, ""
        logger.info(
            "registered with %s (certificate %s): %s",
            self._address,
            stream.peer.fingerprint[:16] or "none, plaintext",
            wanted,
        )

    async def _open(self, capacity: Capacity) -> Stream:
        """Opens one stream with this capacity and the hardware of its models."""
        await self._read_hardware_in_time()
        request = pb.RegisterAIWorkerRequest(
            secret=self._secret.get_secret_value(),
            capabilities=capabilities(capacity, version=self._version),
            hardware=[
                entry
                for entry in self._hardware
                if ModelKey(entry.pipeline, entry.model_id) in capacity.models
            ],
        )
        return await open_stream(
            request,
            address=self._address,
            pin=self._pin,
            last_peer=self._last_peer,
            on_job=self._on_job,
        )

    def _leave(self, streams: Iterable[Stream], *, after_s: float = 0.0) -> None:
        """Leaves these streams in the background."""
        for stream in streams:
            leaving = asyncio.create_task(stream.leave(after_s=after_s))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    async def _read_hardware_in_time(self) -> None:
        """Asks for the hardware; what is not known in time will be at the next registration."""
        timeout_s = HARDWARE_S if self._asking else HARDWARE_FIRST_S
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(asyncio.to_thread(self._ask_for_hardware))
        await asyncio.wait({self._asking}, timeout=timeout_s)

    def _ask_for_hardware(self) -> None:
        """In a thread; no reason not to register."""
        try:
            self._hardware = self._read_hardware()
        except Exception as error:  # noqa: BLE001 - whatever Ray raises while it restarts
            logger.warning("registering without new hardware facts: %s", type(error).__name__)

    async def _until_something_changes(self) -> None:
        """Returns on another capacity, or for one stream instead of idle ones; raises at an end."""
        changed = asyncio.create_task(self._changed.wait())
        readers = {stream.reader for stream in self._streams}
        waiting: set[asyncio.Task[Any]] = {changed, *readers}
        idle_s = IDLE_S if len(readers) > 1 else None
        try:
            while True:
                jobs = self._jobs
                done, _ = await asyncio.wait(
                    waiting, timeout=idle_s, return_when=asyncio.FIRST_COMPLETED
                )
                if not done and self._jobs == jobs:
                    self._told = None
                    return
                if done:
                    break
            if readers:
                await asyncio.wait(readers, timeout=COALESCE_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()
        for reader in readers:
            if reader.done():
                reader.result()
                raise ended(self._address)

    @property
    def _jobs(self) -> int:
        """How many the streams have brought."""
        return sum(stream.jobs for stream in self._streams)

    async def _pause(self, pause_s: float) -> None:
        """Waits, or less when there is another capacity to announce."""
        # Not wait_for: in Python 3.11 it can swallow a cancellation, and with it the end.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._changed.wait()

    def _was_healthy(self) -> bool:
        """Whether a stream that ended had stood for a while."""
        now = asyncio.get_running_loop().time()
        return any(
            stream.reader.done() and now - stream.opened_at > HEALTHY_S for stream in self._streams
        )

    async def _forget_ended(self) -> None:
        """Forgets streams that have ended; those that stand are kept while we try a new one."""
        for stream in [stream for stream in self._streams if stream.reader.done()]:
            self._streams.remove(stream)
            self._told = None
            await stream.close()


def backoff_s(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    # Bounded before the power: an orchestrator may be down for days.
    pause_s = BACKOFF_FIRST_S * BACKOFF_FACTOR ** min(failures, 100)
    jitter = random.uniform(1 - BACKOFF_JITTER, 1 + BACKOFF_JITTER)  # noqa: S311 - no secret
    return min(pause_s * jitter, BACKOFF_MAX_S)
