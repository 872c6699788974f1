"""RegisterAIWorker: who may connect, and the stream of jobs (go-livepeer, server/ai_worker.go).

A job is lost when it was written to a stream that its worker has given up: it is counted as
sent and never answered. Where the stream's end was noticed first, sending fails and the job
goes to the next worker (core/ai_orchestrator.go, Process).

Two things differ from the real orchestrator. hypercorn sends the response headers at once,
where Go sends them with the first job; a worker must not wait for them. And between the two
cases above Go has a moment in which sending seems to succeed and is in vain: a quarter of a
millisecond, and some 20 where its processors are busy.

What is not different: a registration is overtaken by calls that were made after it on the same
connection, for in Go all of them are goroutines.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from hmac import compare_digest

from google.protobuf.message import DecodeError

from cluster.loopback.asgi import Receive, Request, Send
from cluster.loopback.faults import FaultLog
from cluster.loopback.grpc_framing import (
    ALREADY_EXISTS,
    INVALID_ARGUMENT,
    OK,
    UNKNOWN,
    FramingError,
    Status,
    decode_message,
    end_stream,
    send_message,
    start_stream,
)
from cluster.loopback.tls_server import Connection
from cluster.loopback.workers import Outgoing, Worker, Workers, slots_of
from cluster.protocol import lp_rpc_pb2 as pb

PATH = "/net.AIWorker/RegisterAIWorker"

_OVERTAKEN_BY, _OVERTAKEN_S = 2, 0.05
"""So many later calls are answered before a registration is read, if they come in time."""

_log = logging.getLogger(__name__)
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?", re.ASCII)


def parse_version(text: str) -> tuple[int, int, int] | None:
    """Returns a semantic version without its suffixes; None for anything else."""
    match = _VERSION.fullmatch(text)
    return None if match is None else (int(match[1]), int(match[2]), int(match[3]))


class Registration:
    """Accepts workers and sends them their jobs."""

    def __init__(
        self,
        *,
        secret: str,
        version: str,
        workers: Workers,
        faults: FaultLog,
        connection: Callable[[str], Connection | None],
        messages: Callable[[pb.NotifyAIJob], Sequence[bytes]],
    ) -> None:
        """Takes what decides who may connect, who is at a peer, and what is written for a job."""
        lowest = parse_version(version)
        if lowest is None:
            raise ValueError(f"the orchestrator's version {version!r} is not like 0.8.0")
        self._secret = secret.encode()
        self._version = version
        self._lowest = lowest
        self._workers = workers
        self._faults = faults
        self._connection = connection
        self._messages = messages
        self._overtaking: dict[str, asyncio.Semaphore] = {}

    def was_overtaken(self, peer: str) -> None:
        """To be called when another call on a worker's connection has been answered."""
        if peer in self._overtaking:
            self._overtaking[peer].release()

    async def _be_overtaken(self, peer: str) -> None:
        """Gives later calls the time to be answered first."""
        answered = self._overtaking.setdefault(peer, asyncio.Semaphore(0))
        try:
            async with asyncio.timeout(_OVERTAKEN_S):
                for _ in range(_OVERTAKEN_BY):
                    await answered.acquire()
        except TimeoutError:
            pass
        finally:
            self._overtaking.pop(peer, None)

    async def serve(self, request: Request, receive: Receive, send: Send) -> None:
        """Handles one RegisterAIWorker call from its first byte to its last."""
        await start_stream(send)
        await self._be_overtaken(request.peer)
        admitted = self._admit(request)
        if isinstance(admitted, Status):
            await end_stream(send, admitted)
            return
        worker = admitted
        connection = self._connection(worker.peer)
        if connection is None:
            return
        self._workers.connect(worker)
        _log.info("worker %s connected: %s", worker.peer, worker.describe()["capacity"])
        departure = asyncio.create_task(_watch_departure(receive, worker))
        try:
            while isinstance(event := await worker.outbox.get(), Outgoing):
                written = connection.next_data()
                for message in self._messages(event.message):
                    await send_message(send, message)
                await asyncio.wait({written, departure}, return_when=asyncio.FIRST_COMPLETED)
                if not written.done():
                    event.not_sent()
            if event is not None:
                await end_stream(send, event)
        finally:
            departure.cancel()
            self._workers.disconnect(worker)
            worker.leave()
            _log.info("worker %s disconnected", worker.peer)

    def _admit(self, request: Request) -> Worker | Status:
        """Returns the new worker, or how the call ends without one."""
        if request.body_error is not None:
            self._faults.add(str(request.body_error), peer=request.peer)
            return Status(INVALID_ARGUMENT, str(request.body_error))
        try:
            registration = pb.RegisterAIWorkerRequest.FromString(decode_message(request.body))
        except (FramingError, DecodeError) as error:
            self._faults.add(f"not a RegisterAIWorkerRequest: {error}", peer=request.peer)
            return Status(INVALID_ARGUMENT, str(error))
        if not compare_digest(registration.secret.encode(), self._secret):
            _log.warning("worker %s refused: invalid secret", request.peer)
            return Status(UNKNOWN, "invalid secret")
        # Workers older than capabilities send none and pass for this version, without capacity.
        version = (
            registration.capabilities.version
            if registration.HasField("capabilities")
            else self._version
        )
        parsed = parse_version(version)
        if parsed is None or parsed < self._lowest:
            _log.warning(
                "worker %s refused: version %r, at least %s is needed",
                request.peer,
                version,
                self._version,
            )
            return OK
        if any(worker.peer == request.peer for worker in self._workers):
            reason = "a second registration on one connection: their capacities would mix"
            self._faults.add(reason, peer=request.peer)
            return Status(ALREADY_EXISTS, reason)
        return Worker(
            peer=request.peer,
            version=version,
            slots=slots_of(registration.capabilities),
            hardware=tuple(registration.hardware),
        )


async def _watch_departure(receive: Receive, worker: Worker) -> None:
    """Ends the worker's stream when its call is cancelled or its connection is lost."""
    while (await receive())["type"] != "http.disconnect":
        pass
    worker.leave()
