"""Being a remote AI worker: announce capacity, take jobs, leave.

One gRPC call stands for one registration; the orchestrator sends jobs down its stream and
learns our capacity from its request only. So a change of capacity is a new call: the new
stream is opened first and the old one closed after it, and jobs of the old one are still
answered, for they are matched by task id alone (go-livepeer, core/ai_orchestrator.go).
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from typing import Any

from pydantic import SecretStr

from cluster.bridge.address import Address
from cluster.bridge.capabilities import capabilities
from cluster.bridge.job import Job
from cluster.bridge.peer import Peer
from cluster.bridge.stream import Stream, ended, open_stream
from cluster.capacity import Capacity
from cluster.errors import InvalidSecret, RegistrationError
from cluster.protocol import lp_rpc_pb2 as pb

logger = logging.getLogger(__name__)

BACKOFF_FIRST_S, BACKOFF_FACTOR, BACKOFF_MAX_S, BACKOFF_JITTER = 0.5, 1.5, 60.0, 0.5

HEALTHY_S = 30.0
"""A registration that stood this long was no failure: the next pause is short again."""

COALESCE_S = 0.5
"""Changes of capacity within this time are one re-registration. Each one has a moment in which
the orchestrator may still send a job down the old stream, so they should be few."""


class WorkerRegistration:
    """Keeps one worker registered with one orchestrator, with the latest capacity."""

    def __init__(
        self,
        *,
        address: Address,
        secret: SecretStr,
        version: str,
        on_job: Callable[[Job], None],
        pin: str | None = None,
        read_hardware: Callable[[], list[pb.HardwareInformation]] = list,
    ) -> None:
        """Connects nothing yet; see `run`.

        Args:
            address: of the orchestrator.
            secret: its -orchSecret.
            version: the go-livepeer version to advertise.
            on_job: called for every job, in the event loop.
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
        self._changed = asyncio.Event()
        self._stream: Stream | None = None
        self._last_peer: Peer | None = None

    def announce(self, capacity: Capacity) -> None:
        """Makes this the capacity that the orchestrator knows; nothing means not registered."""
        self._wanted = capacity
        self._changed.set()

    async def run(self) -> None:
        """Registers, and again whenever that is needed, until cancelled.

        Leaves when cancelled: the stream is closed before this returns.

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
                    await self._close_ended()
                    pause_s = backoff_s(failures)
                    failures += 1
                    logger.warning("%s; trying again in %.1f s", error, pause_s)
                    await self._pause(pause_s)
        finally:
            if self._stream:
                await self._stream.close_when_quiet()

    async def _register(self) -> None:
        """Opens a stream with the wanted capacity, then closes the one before it."""
        wanted = self._wanted
        if not wanted:
            if self._stream:
                logger.info("no capacity: leaving %s", self._address)
            await self._close()
            return
        request = pb.RegisterAIWorkerRequest(
            secret=self._secret.get_secret_value(),
            capabilities=capabilities(wanted, version=self._version),
            hardware=await self._hardware(),
        )
        stream = await open_stream(
            request,
            address=self._address,
            pin=self._pin,
            last_peer=self._last_peer,
            on_job=self._on_job,
        )
        old, self._stream, self._last_peer = self._stream, stream, stream.peer
        logger.info(
            "registered with %s (certificate %s): %s",
            self._address,
            stream.peer.fingerprint[:16] or "none, plaintext",
            wanted,
        )
        if old:
            await old.close_when_quiet()

    async def _hardware(self) -> list[pb.HardwareInformation]:
        """Asks for the hardware; it is information only, and no reason not to register."""
        try:
            return await asyncio.to_thread(self._read_hardware)
        except Exception as error:  # noqa: BLE001 - whatever Ray raises while it restarts
            logger.warning("registering without hardware facts: %s", type(error).__name__)
            return []

    async def _until_something_changes(self) -> None:
        """Returns on another capacity; raises when the stream ends."""
        changed = asyncio.create_task(self._changed.wait())
        waiting: set[asyncio.Task[Any]] = {changed}
        if self._stream:
            waiting.add(self._stream.reader)
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if changed.done() and self._stream:
                await asyncio.wait({self._stream.reader}, timeout=COALESCE_S)
        finally:
            changed.cancel()
        if self._stream and self._stream.reader.done():
            self._stream.reader.result()
            raise ended(self._address)

    async def _pause(self, pause_s: float) -> None:
        """Waits, or less when there is another capacity to announce."""
        # Not wait_for: in Python 3.11 it can swallow a cancellation, and with it the end.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._changed.wait()

    def _was_healthy(self) -> bool:
        """Whether the stream that ended had stood for a while."""
        clock = asyncio.get_running_loop().time
        return self._stream is not None and clock() - self._stream.opened_at > HEALTHY_S

    async def _close_ended(self) -> None:
        """Forgets a stream that has ended; one that stands is kept while we try a new one."""
        if self._stream and self._stream.reader.done():
            await self._close()

    async def _close(self) -> None:
        stream, self._stream = self._stream, None
        if stream:
            await stream.close()


def backoff_s(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    # Bounded before the power: an orchestrator may be down for days.
    pause_s = BACKOFF_FIRST_S * BACKOFF_FACTOR ** min(failures, 100)
    jitter = random.uniform(1 - BACKOFF_JITTER, 1 + BACKOFF_JITTER)  # noqa: S311 - no secret
    return min(pause_s * jitter, BACKOFF_MAX_S)
