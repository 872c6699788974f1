"""Who is connected and with what capacity, and who gets the next job.

Selection is the real one's (go-livepeer, core/ai_orchestrator.go): the first worker in order
of registration that has a free slot for the pipeline and model. A slot is taken when the job
is handed out and given back when its answer arrives.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.json_format import MessageToDict

from cluster.loopback.grpc_framing import OK, Status
from cluster.loopback.pipelines import CAPABILITIES
from cluster.protocol import lp_rpc_pb2 as pb


@dataclass(slots=True)
class Slots:
    """The capacity of one worker for one model."""

    capacity: int
    in_use: int = 0

    @property
    def free(self) -> int:
        """How many more jobs fit."""
        return self.capacity - self.in_use


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A job on its way to a worker."""

    message: pb.NotifyAIJob
    not_sent: Callable[[], None]
    """To be called where the worker has gone before it was written."""


@dataclass(slots=True, kw_only=True, eq=False)
class Worker:
    """One connected worker."""

    peer: str
    """`ip:port`: what the real orchestrator knows a worker by."""
    version: str
    slots: Mapping[tuple[str, str], Slots]
    """By pipeline and model id; models of capacity 0 are left out, they are never selected."""
    hardware: Sequence[pb.HardwareInformation] = ()
    suspensions: int = 0
    """How often a gateway would have suspended the orchestrator for this worker's answers."""
    outbox: asyncio.Queue[Outgoing | Status | None] = field(default_factory=asyncio.Queue)
    """Jobs to be sent, and at last how the stream ends; None where the worker has gone."""
    gone: bool = False
    """Whether its stream has ended: what is sent from now on fails."""

    def send(self, job: Outgoing) -> None:
        """Sends a job, or says that it cannot."""
        if self.gone:
            job.not_sent()
        else:
            self.outbox.put_nowait(job)

    def leave(self) -> None:
        """Fails the jobs that were not written; those that were can still be answered."""
        self.gone = True
        while not self.outbox.empty():
            if isinstance(event := self.outbox.get_nowait(), Outgoing):
                event.not_sent()
        self.outbox.put_nowait(None)

    def end_stream(self, status: Status = OK) -> None:
        """Ends the worker's stream once the jobs before are sent."""
        self.outbox.put_nowait(status)

    def describe(self) -> dict[str, Any]:
        """Returns what /status tells of this worker."""
        return {
            "peer": self.peer,
            "version": self.version,
            "suspended": self.suspensions,
            "capacity": summed([self]),
            "hardware": [
                MessageToDict(
                    entry,
                    preserving_proto_field_name=True,
                    always_print_fields_with_no_presence=True,
                )
                for entry in self.hardware
            ],
        }


def slots_of(capabilities: pb.Capabilities) -> dict[tuple[str, str], Slots]:
    """Returns what a registration advertises; pipelines without a name are called by number."""
    return {
        (CAPABILITIES.get(number, f"capability {number}"), model_id): Slots(model.capacity)
        for number, constraints in capabilities.constraints.PerCapability.items()
        for model_id, model in constraints.models.items()
        if model.capacity > 0
    }


def summed(workers: Iterable[Worker]) -> dict[str, dict[str, dict[str, int]]]:
    """Returns `{pipeline: {model id: {"capacity", "in_use"}}}` over some workers."""
    total: dict[str, dict[str, dict[str, int]]] = {}
    for worker in workers:
        for (pipeline, model_id), slots in worker.slots.items():
            entry = total.setdefault(pipeline, {}).setdefault(
                model_id, {"capacity": 0, "in_use": 0}
            )
            entry["capacity"] += slots.capacity
            entry["in_use"] += slots.in_use
    return total


class Workers:
    """The connected workers, in order of registration."""

    def __init__(self) -> None:
        """Starts without any."""
        self._connected: list[Worker] = []
        self._changed = asyncio.Event()

    def __iter__(self) -> Iterator[Worker]:
        """Iterates over a copy: workers come and go meanwhile."""
        return iter(tuple(self._connected))

    def connect(self, worker: Worker) -> None:
        """Adds a worker."""
        self._connected.append(worker)
        self._tell()

    def disconnect(self, worker: Worker) -> None:
        """Removes a worker; its jobs can still be answered."""
        if worker in self._connected:
            self._connected.remove(worker)
            self._tell()

    def select(
        self, *, pipeline: str, model_id: str, exclude: Collection[Worker] = ()
    ) -> tuple[Worker, Slots] | None:
        """Returns the first worker with a free slot, and takes the slot; None without any."""
        for worker in self._connected:
            slots = worker.slots.get((pipeline, model_id))
            if slots is not None and slots.free > 0 and worker not in exclude:
                slots.in_use += 1
                return worker, slots
        return None

    def models(self, pipeline: str) -> list[str]:
        """Returns the model ids that are advertised for a pipeline."""
        return sorted(summed(self._connected).get(pipeline, {}))

    async def wait_for(self, condition: Callable[[tuple[Worker, ...]], bool]) -> None:
        """Returns as soon as the connected workers fulfil a condition."""
        while not condition(tuple(self._connected)):
            await self._changed.wait()

    def _tell(self) -> None:
        """Wakes those who wait now; who waits later waits for the next change."""
        self._changed.set()
        self._changed = asyncio.Event()
