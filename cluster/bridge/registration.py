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

import grpc
from pydantic import SecretStr

from cluster.bridge.address import Address
from cluster.bridge.capabilities import capabilities
from cluster.bridge.job import Job
from cluster.bridge.peer import CONNECT_TIMEOUT_S, Peer, identify
from cluster.capacity import Capacity
from cluster.errors import (
    InvalidSecret,
    OrchestratorRefused,
    OrchestratorUnreachable,
    RegistrationError,
)
from cluster.protocol import lp_rpc_pb2 as pb
from cluster.protocol.lp_rpc_pb2_grpc import AIWorkerStub

logger = logging.getLogger(__name__)

SETTLE_S = 0.5
"""A registration is not acknowledged: it is good when the connection is up and the call still
open after this time. Refusals arrive within milliseconds (measured)."""

BACKOFF_FIRST_S, BACKOFF_FACTOR, BACKOFF_MAX_S, BACKOFF_JITTER = 0.5, 1.5, 60.0, 0.5

HEALTHY_S = 30.0
"""A registration that stood this long was no failure: the next pause is short again."""

COALESCE_S = 0.5
"""Changes of capacity within this time are one re-registration. Each one has a moment in which
the orchestrator may still send a job down the old stream, so they should be few."""

QUIET_S, QUIET_PATIENCE_S = 0.25, 5.0
"""An old registration is closed after a pause in its jobs of this length, or after so long."""

CHANNEL_OPTIONS: list[tuple[str, int | str]] = [
    # The orchestrator knows a worker by its ip:port, so each registration has a connection of
    # its own; two on one corrupt each other's counts.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Without this a hung peer is noticed after 61 s, whatever the keepalive says.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    # Jobs carry prompts and masks; the default of 4 MiB ends the stream.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.enable_http_proxy", 0),
]


class Stream:
    """One registration that stands: a connection, a call on it and the task that reads it."""

    def __init__(
        self,
        *,
        peer: Peer,
        channel: grpc.aio.Channel,
        call: Any,
        jobs: "_Jobs",
        reader: "asyncio.Task[None]",
    ) -> None:
        """Takes the parts; `open_stream` makes them."""
        self.peer = peer
        self.opened_at = asyncio.get_running_loop().time()
        self._channel = channel
        self._call = call
        self._jobs = jobs
        self.reader = reader
        """Done when the stream has ended; raises RegistrationError when it ended badly."""

    async def close_when_quiet(self) -> None:
        """Closes between two jobs, or after a while in any case.

        A job that the orchestrator sends in the moment of closing is lost, and it prefers the
        older of two registrations. So we wait for a pause in the jobs, which ends as soon as
        it is long against a round trip.
        """
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + QUIET_PATIENCE_S
        while not self.reader.done() and clock() < give_up_at:
            jobs = self._jobs.count
            await asyncio.wait({self.reader}, timeout=QUIET_S)
            if self._jobs.count == jobs:
                break
        await self.close()

    async def close(self) -> None:
        """Ends the call, which takes this registration's capacity back, and disconnects."""
        self._call.cancel()
        await asyncio.gather(self.reader, return_exceptions=True)
        await self._channel.close()


async def open_stream(
    request: pb.RegisterAIWorkerRequest,
    *,
    address: Address,
    pin: str | None,
    last_peer: Peer | None,
    on_job: Callable[[Job], None],
) -> Stream:
    """Registers and waits until the registration stands.

    Certificate and channel are new for every attempt: the orchestrator may be another process
    by now, and an old channel replays its old error.

    Args:
        request: secret, capabilities and hardware.
        address: of the orchestrator.
        pin: SHA-256 fingerprint that its certificate must have.
        last_peer: who was there before; kept when it is the same process, and with it the
            TLS context that open HTTPS connections belong to.
        on_job: called for every job.

    Raises:
        InvalidSecret: fatal.
        RegistrationError: any other reason why there is no registration.
    """
    peer = await identify(address, pin=pin)
    if last_peer == peer:
        peer = last_peer
    channel = _channel(peer)
    try:
        call = AIWorkerStub(channel).RegisterAIWorker(request)
        jobs = _Jobs(peer=peer, on_job=on_job)
        reader = asyncio.create_task(jobs.read(call))
        try:
            await _settle(channel, reader, jobs)
        except BaseException:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            raise
    except BaseException:
        await channel.close()
        raise
    return Stream(peer=peer, channel=channel, call=call, jobs=jobs, reader=reader)


def _channel(peer: Peer) -> grpc.aio.Channel:
    if peer.pem is None:
        return grpc.aio.insecure_channel(peer.address.authority, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(
        peer.address.authority,
        grpc.ssl_channel_credentials(root_certificates=peer.pem),
        options=[*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", peer.name)],
    )


async def _settle(channel: grpc.aio.Channel, reader: "asyncio.Task[None]", jobs: "_Jobs") -> None:
    """Returns when the registration stands; raises what ended it otherwise."""
    ready = asyncio.create_task(channel.channel_ready())
    try:
        await asyncio.wait(
            {ready, reader}, timeout=CONNECT_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
        )
        if not ready.done() and not reader.done():
            raise OrchestratorUnreachable(
                f"{jobs.peer.address} accepts connections and does not speak gRPC"
            )
    finally:
        ready.cancel()
    await asyncio.wait({reader}, timeout=SETTLE_S)
    if reader.done():
        reader.result()
        if jobs.count:
            raise _ended(jobs.peer.address)
        raise OrchestratorRefused(
            f"{jobs.peer.address} ended the registration at once and without an error, as it does "
            "when it is newer than the version that we advertise: raise --advertise-version"
        )


def _ended(address: Address) -> OrchestratorUnreachable:
    return OrchestratorUnreachable(
        f"{address} ended the registration: it was stopped, or it dropped this worker because a "
        "job was not answered in time"
    )


class _Jobs:
    """The jobs of one stream."""

    def __init__(self, *, peer: Peer, on_job: Callable[[Job], None]) -> None:
        self.peer = peer
        self.count = 0
        """How many have come."""
        self._on_job = on_job

    async def read(self, call: Any) -> None:
        """Takes jobs until the stream ends; raises RegistrationError when it ends badly."""
        clock = asyncio.get_running_loop().time
        try:
            # Asking for initial metadata would hang: no headers come before the first job.
            async for message in call:
                self.count += 1
                self._on_job(Job.from_message(message, peer=self.peer, received_at=clock()))
        except grpc.aio.AioRpcError as error:
            details = error.details() or ""
            if error.code() is grpc.StatusCode.UNKNOWN and details == "invalid secret":
                raise InvalidSecret(
                    f"{self.peer.address} does not accept the secret: --orch-secret must be the "
                    "orchestrator's -orchSecret, or the path of a file that exists"
                ) from None
            raise OrchestratorUnreachable(
                f"{self.peer.address}: {error.code().name} {details}"
            ) from None


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
            raise _ended(self._address)

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
