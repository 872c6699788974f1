"""One registration on the wire: a connection, a call on it, and the jobs that it brings."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from cluster.bridge.address import Address
from cluster.bridge.job import Job
from cluster.bridge.peer import CONNECT_TIMEOUT_S, Peer, identify
from cluster.bridge.tunnel import Tunnel, open_tunnel
from cluster.errors import InvalidSecret, OrchestratorRefused, OrchestratorUnreachable
from cluster.protocol import lp_rpc_pb2 as pb
from cluster.protocol.lp_rpc_pb2_grpc import AIWorkerStub

logger = logging.getLogger(__name__)

SETTLE_S = 0.5
"""A registration is not acknowledged: the first one is good when the connection is up and the
call still open after this time. Refusals arrive within milliseconds (measured). An orchestrator
that took us before takes us again, so then a few round trips are enough."""

ROUND_TRIPS = 3
"""After so many, one after the other, the registration before them should be in force.

Go serves every call in a goroutine of its own, and the one that began later is often done first:
one answer was there before the worker stood in the manager in one of a hundred registrations,
by up to 20 ms where the processor was busy. After three it mostly had stood there for half a
millisecond at the least, and for 20 where the processor was busy, which slows both alike; in two
of 6,000 registrations it came a millisecond late (grpc-go 1.68.1 over the HTTP/2 of Go 1.27.3).
Hence `OVERLAP_S` in registration.py."""

FAREWELL_S, LAST_JOBS_S = 5.0, 1.0
"""At the end: for the orchestrator to close its side, which takes it one round trip, and then
for gRPC to hand out the jobs that have arrived: milliseconds, on a machine with time for it."""

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
        tunnel: Tunnel,
        jobs: "_Jobs",
        reader: "asyncio.Task[None]",
    ) -> None:
        """Takes the parts; `open_stream` makes them."""
        self.peer = peer
        self._tunnel = tunnel
        self.opened_at = asyncio.get_running_loop().time()
        self._channel = channel
        self._call = call
        self._jobs = jobs
        self.reader = reader
        """Done when the stream has ended; raises RegistrationError when it ended badly."""

    @property
    def jobs(self) -> int:
        """How many jobs it has brought."""
        return self._jobs.count

    async def leave(self, *, after_s: float = 0.0) -> None:
        """Ends the registration: jobs are taken until the last moment.

        It is done at once, for until then the orchestrator may count this registration's
        capacity on top of the next one's. What is left to chance is a job that the orchestrator
        sends between noticing that our side has closed and striking us off its list: gRPC takes
        it, tells that it was sent, and drops it (google.golang.org/grpc,
        internal/transport/handler_server.go `do` and `Write`). Measured, that is a quarter of a
        millisecond, and 20 ms where its processors are busy: one job was lost in 230 farewells
        under 30 to 100 jobs a second, and one in 22 of a busy orchestrator.
        """
        await asyncio.sleep(after_s)
        self._tunnel.leave()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await self._tunnel.ended.wait()
        # After the end only what is on its way comes, which is not for ever.
        while await self._brings_jobs(LAST_JOBS_S) and self._tunnel.ended.is_set():
            pass
        await self.close()

    async def _brings_jobs(self, pause_s: float) -> bool:
        """Waits for a moment and tells whether a job came in it; none does after the end."""
        before = self._jobs.count
        await asyncio.wait({self.reader}, timeout=pause_s)
        return self._jobs.count > before and not self.reader.done()

    async def close(self) -> None:
        """Ends the registration at once; a job on its way is lost."""
        self._call.cancel()
        # It may wait for room for the next job. The one that it has was taken.
        self.reader.cancel()
        await asyncio.gather(self.reader, return_exceptions=True)
        await self._channel.close()
        await self._tunnel.close()


async def open_stream(
    request: pb.RegisterAIWorkerRequest,
    *,
    address: Address,
    pin: str | None,
    last_peer: Peer | None,
    on_job: Callable[[Job], Awaitable[None]],
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
        on_job: called for every job; the next is read when it returns.

    Raises:
        InvalidSecret: fatal.
        RegistrationError: any other reason why there is no registration.
    """
    peer = await identify(address, pin=pin)
    known = last_peer == peer
    if last_peer is not None and known:
        peer = last_peer
    tunnel = await open_tunnel(address)
    channel = _channel(peer, tunnel.target)
    try:
        # Not before: a call that waited for its connection may be sent after one that did not,
        # and then round trips say nothing (once in a thousand times, on a busy machine).
        await _connected(channel, peer)
        call = AIWorkerStub(channel).RegisterAIWorker(request)
        jobs = _Jobs(peer=peer, on_job=on_job)
        reader = asyncio.create_task(jobs.read(call))
        try:
            if known:
                await _round_trips(channel)
            else:
                await asyncio.wait({reader}, timeout=SETTLE_S)
            _check_that_it_stands(reader, jobs)
        except BaseException:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            raise
    except BaseException:
        await channel.close()
        await tunnel.close()
        raise
    return Stream(peer=peer, channel=channel, call=call, tunnel=tunnel, jobs=jobs, reader=reader)


def _channel(peer: Peer, target: str) -> grpc.aio.Channel:
    if peer.pem is None:
        return grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(
        target,
        grpc.ssl_channel_credentials(root_certificates=peer.pem),
        options=[*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", peer.name)],
    )


async def _connected(channel: grpc.aio.Channel, peer: Peer) -> None:
    """Returns when the connection is up, or has failed: the next call tells why."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            state = channel.get_state(try_to_connect=True)
            while state in (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING):
                await channel.wait_for_state_change(state)
                state = channel.get_state(try_to_connect=True)
    except TimeoutError:
        raise OrchestratorUnreachable(
            f"{peer.address} accepts connections and does not speak gRPC"
        ) from None


async def _round_trips(channel: grpc.aio.Channel) -> None:
    """Returns when the orchestrator has not only read, but done what we sent before.

    It answers a method that it does not have, and frames of one connection are read in order.
    """
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
        "/net.AIWorker/NoSuchMethod"
    )
    # Unimplemented. Or the connection was lost, which the reader of the jobs tells better.
    for _ in range(ROUND_TRIPS):
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call(b"", timeout=CONNECT_TIMEOUT_S)


def _check_that_it_stands(reader: "asyncio.Task[None]", jobs: "_Jobs") -> None:
    """Raises what ended the registration, if something did."""
    if not reader.done():
        return
    reader.result()
    if jobs.count:
        raise ended(jobs.peer.address)
    raise OrchestratorRefused(
        f"{jobs.peer.address} ended the registration at once and without an error, as it does "
        "when it is newer than the version that we advertise: raise --advertise-version"
    )


def ended(address: Address) -> OrchestratorUnreachable:
    """What a stream means that ended without an error."""
    return OrchestratorUnreachable(
        f"{address} ended the registration: it was stopped, or it dropped this worker because a "
        "job was not answered in time"
    )


class _Jobs:
    """The jobs of one stream."""

    def __init__(self, *, peer: Peer, on_job: Callable[[Job], Awaitable[None]]) -> None:
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
                if message is None:
                    # What gRPC makes of bytes that are no message of this kind. The next one may
                    # be, and leaving would lose what is on its way.
                    logger.warning("%s sent a message that cannot be read", self.peer.address)
                    continue
                self.count += 1
                job = Job.from_message(message, peer=self.peer, received_at=clock())
                # It may wait, and these may have many megabytes.
                del message
                taking = self._on_job(job)
                del job
                await taking
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
