"""Changes of capacity: no job is lost, whatever moment the orchestrator sends it in."""

import asyncio
import queue
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import grpc
import pytest

from cluster.bridge.address import Address
from cluster.bridge.job import Job
from cluster.bridge.peer import Peer
from cluster.bridge.stream import LAST_JOBS_S, Stream, open_stream
from cluster.capacity import Capacity
from cluster.loopback import LoopbackOrchestrator, Worker
from cluster.protocol import lp_rpc_pb2 as pb
from cluster.protocol.lp_rpc_pb2_grpc import AIWorkerStub
from tests.cluster.bridge.conftest import (
    SECRET,
    Ask,
    address,
    capacity,
    registered,
    running,
)

CHANGES = 100
JOB_S = 0.05
LOST_AFTER_S = 20.0
A_JOB = b'{"request": {"prompt": "x", "model_id": "org/a"}}'


def advertised(workers: tuple[Worker, ...]) -> Counter[str]:
    """Slots by model, over all registrations."""
    slots: Counter[str] = Counter()
    for worker in workers:
        slots.update({model_id: model.capacity for (_, model_id), model in worker.slots.items()})
    return slots


async def until_advertised(orchestrator: LoopbackOrchestrator, wanted: Capacity) -> None:
    slots = {key.model_id: model.slots for key, model in wanted.models.items()}
    async with asyncio.timeout(60):
        await orchestrator.wait_for_workers(lambda workers: advertised(workers) == slots)


async def test_a_hundred_changes_under_load_lose_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every change is a registration of its own, and the next comes as soon as it is known.
    monkeypatch.setattr("cluster.bridge.registration.COALESCE_S", 0.0)
    monkeypatch.setattr("cluster.bridge.stream.LAST_JOBS_S", LAST_JOBS_S)
    dice = random.Random(4)  # noqa: S311 - no secret
    statuses: Counter[int] = Counter()
    over = asyncio.Event()
    connector = aiohttp.TCPConnector(ssl=False, limit=0)
    async with (
        LoopbackOrchestrator(secret=SECRET, job_timeout_s=LOST_AFTER_S) as orchestrator,
        aiohttp.ClientSession(orchestrator.url, connector=connector) as http,
        running(address(orchestrator), capacity(a=4, b=2)) as bridge,
    ):

        async def ask_on(model: str, pause_s: float) -> None:
            while not over.is_set():
                body = {"prompt": "a cat", "model_id": f"org/{model}"}
                async with http.post("/text-to-image", json=body) as response:
                    await response.read()
                statuses[response.status] += 1
                await asyncio.sleep(dice.expovariate(1 / pause_s))

        await registered(orchestrator)
        bridge.backend.takes_s = JOB_S
        # One model always has more jobs than slots, the other is busy now and then.
        load = [asyncio.create_task(ask_on("a", 0.01)) for _ in range(8)]
        load += [asyncio.create_task(ask_on("b", 0.1)) for _ in range(3)]
        unregistered = asyncio.create_task(
            orchestrator.wait_for_workers(lambda workers: len(advertised(workers)) < 2)
        )
        for _ in range(CHANGES):
            wanted = capacity(a=dice.randint(1, 8), b=dice.randint(1, 4))
            bridge.capacities.put_nowait(wanted)
            await until_advertised(orchestrator, wanted)
        over.set()
        await asyncio.gather(*load)
        assert not unregistered.done(), "there was a moment without a registration"
        unregistered.cancel()
    assert statuses.keys() <= {200, 503}
    assert statuses[200] > CHANGES
    assert (orchestrator.faults, orchestrator.late) == ([], [])
    assert all(record.delivered for record in bridge.records)


async def test_nothing_overtakes_a_registration(
    orchestrator: LoopbackOrchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    # gRPC sends calls in their order only where none of them waits for the connection.
    begun_on = []

    def stub(channel: grpc.aio.Channel) -> AIWorkerStub:
        begun_on.append(channel.get_state())
        return AIWorkerStub(channel)

    monkeypatch.setattr("cluster.bridge.stream.AIWorkerStub", stub)
    async with running(address(orchestrator), capacity(a=2)) as bridge:
        await until_advertised(orchestrator, capacity(a=2))
        bridge.capacities.put_nowait(capacity(a=1))
        await until_advertised(orchestrator, capacity(a=1))
    assert begun_on == [grpc.ChannelConnectivity.READY] * 2


async def test_an_orchestrator_that_is_slow_to_begin_is_never_without_us(
    orchestrator: LoopbackOrchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It answers other calls first, so one answer does not say that it has read a registration.
    monkeypatch.setattr("cluster.bridge.registration.OVERLAP_S", 0.0)
    async with running(address(orchestrator), capacity(a=9)) as bridge:
        await until_advertised(orchestrator, capacity(a=9))
        counts = []

        def note(workers: tuple[Worker, ...]) -> bool:
            counts.append(len(workers))
            return False

        watching = asyncio.create_task(orchestrator.wait_for_workers(note))
        for slots in (8, 7, 6):
            bridge.capacities.put_nowait(capacity(a=slots))
            await until_advertised(orchestrator, capacity(a=slots))
        watching.cancel()
    assert set(counts) == {1, 2}


async def test_the_old_registration_outlives_the_beginning_of_the_new_one(
    orchestrator: LoopbackOrchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.bridge.registration.OVERLAP_S", 0.5)
    clock = asyncio.get_running_loop().time
    async with running(address(orchestrator), capacity(a=2)) as bridge:
        await until_advertised(orchestrator, capacity(a=2))
        bridge.capacities.put_nowait(capacity(a=1))
        await registered(orchestrator, count=2)
        began_at = clock()
        await until_advertised(orchestrator, capacity(a=1))
        assert clock() - began_at > 0.4


async def test_whose_turn_a_shared_card_is_concerns_no_remote_worker() -> None:
    def in_turn(slots: Capacity, *, shared: int) -> Capacity:
        return Capacity(
            models={key: replace(it, shared=shared) for key, it in slots.models.items()}
        )

    async with (
        LoopbackOrchestrator(secret=SECRET) as orchestrator,
        running(address(orchestrator), in_turn(capacity(a=2), shared=2)) as bridge,
    ):
        await until_advertised(orchestrator, capacity(a=2))
        (first,) = orchestrator.workers
        bridge.capacities.put_nowait(in_turn(capacity(a=2), shared=0))
        bridge.capacities.put_nowait(in_turn(capacity(a=2), shared=2))
        # Growth is one stream more, and the first is left alone.
        bridge.capacities.put_nowait(in_turn(capacity(a=3), shared=3))
        await until_advertised(orchestrator, capacity(a=3))
        assert first in orchestrator.workers
        assert len(orchestrator.workers) == 2


@asynccontextmanager
async def a_long_way_from(port: int, *, delay_s: float) -> AsyncIterator[int]:
    """A port from which it takes a while to another port, and no time back."""

    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while data := await reader.read(65536):
            loop.call_later(delay_s, writer.write, data)
        loop.call_later(delay_s, writer.write_eof)

    async def back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    connections: set[asyncio.Task[Any]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        this = asyncio.current_task()
        assert this
        connections.add(this)
        there = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.gather(slowly(reader, there[1]), back(there[0], writer))
        finally:
            there[1].transport.abort()
            writer.transport.abort()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        async with server:
            yield server.sockets[0].getsockname()[1]
    finally:
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def test_jobs_that_cross_the_farewell_are_taken(
    orchestrator: LoopbackOrchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.bridge.stream.LAST_JOBS_S", LAST_JOBS_S)
    jobs: asyncio.Queue[Job] = asyncio.Queue()
    request = pb.RegisterAIWorkerRequest(
        secret=SECRET, capabilities=pb.Capabilities(version="0.9.1")
    )
    async with a_long_way_from(orchestrator.port, delay_s=0.3) as port:
        stream = await open_stream(
            request,
            address=Address("127.0.0.1", port),
            pin=None,
            last_peer=None,
            on_job=jobs.put,
        )
        (worker,) = orchestrator.workers
        leaving = asyncio.create_task(stream.leave())
        sent = []
        while worker in orchestrator.workers:
            sent.append(
                asyncio.create_task(
                    orchestrator.send_job(
                        worker=worker, pipeline="text-to-image", request_data=A_JOB
                    )
                )
            )
            await asyncio.sleep(0.02)
        await leaving
    for job in sent:
        job.cancel()
    results = await asyncio.gather(*sent, return_exceptions=True)
    not_sent = sum(isinstance(result, Exception) for result in results)
    assert len(sent) > 5
    assert jobs.qsize() == len(sent) - not_sent


async def test_who_does_not_end_the_stream_that_we_leave_is_left_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.bridge.stream.FAREWELL_S", 0.01)
    monkeypatch.setattr("cluster.bridge.stream.LAST_JOBS_S", 0.01)

    class Endless:
        """Stands for an orchestrator behind something that hides our end: jobs go on coming."""

        jobs = 0

        @property
        def count(self) -> int:
            self.jobs += 1
            return self.jobs

    class Ours:
        """The parts of a stream that it closes."""

        ended = asyncio.Event()
        closed = False

        def leave(self) -> None: ...

        def cancel(self) -> None: ...

        async def close(self) -> None:
            self.closed = True

    ours: Any = Ours()
    endless: Any = Endless()
    reader = asyncio.create_task(asyncio.sleep(3600))
    peer = Peer(address=Address("127.0.0.1", 1))
    stream = Stream(peer=peer, channel=ours, call=ours, tunnel=ours, jobs=endless, reader=reader)
    await asyncio.wait_for(stream.leave(), timeout=60)
    assert ours.closed


async def test_more_capacity_closes_nothing(
    orchestrator: LoopbackOrchestrator, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.bridge.registration.IDLE_S", 3600)
    async with running(address(orchestrator), capacity(a=1)) as bridge:
        await registered(orchestrator)
        (first,) = orchestrator.workers
        bridge.backend.hold.clear()
        asked = [asyncio.create_task(ask())]
        await bridge.backend.wait_for_started(1)
        bridge.capacities.put_nowait(capacity(a=3, b=1))
        await until_advertised(orchestrator, capacity(a=3, b=1))
        assert orchestrator.workers[0] is first
        asked += [asyncio.create_task(ask(model_id=f"org/{name}")) for name in "aab"]
        await bridge.backend.wait_for_started(4)
        bridge.backend.hold.set()
        assert [status for status, _ in await asyncio.gather(*asked)] == [200] * 4


async def test_registrations_without_jobs_become_one(
    orchestrator: LoopbackOrchestrator, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.bridge.registration.IDLE_S", 0.3)
    async with running(address(orchestrator), capacity(a=1)) as bridge:
        await registered(orchestrator)
        for wanted in (capacity(a=2), capacity(a=2, b=1)):
            bridge.capacities.put_nowait(wanted)
            await until_advertised(orchestrator, wanted)
        await orchestrator.wait_for_workers(
            lambda workers: len(workers) == 1 and advertised(workers) == {"org/a": 2, "org/b": 1}
        )
        assert (await ask())[0] == 200


async def test_many_registrations_become_one(
    orchestrator: LoopbackOrchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.bridge.registration.COALESCE_S", 0.0)
    monkeypatch.setattr("cluster.bridge.registration.MAX_STREAMS", 3)
    async with running(address(orchestrator), capacity(a=1)) as bridge:
        await registered(orchestrator)
        counts = []
        for slots in range(2, 6):
            bridge.capacities.put_nowait(capacity(a=slots))
            await until_advertised(orchestrator, capacity(a=slots))
            counts.append(len(orchestrator.workers))
        assert counts == [2, 3, 1, 2]


async def test_changes_at_once_are_one_registration(
    orchestrator: LoopbackOrchestrator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "cluster.bridge.registration")
    async with running(address(orchestrator), capacity(a=5)) as bridge:
        await registered(orchestrator)
        for slots in (4, 2, 3):
            bridge.capacities.put_nowait(capacity(a=slots))
        await until_advertised(orchestrator, capacity(a=3))
    assert caplog.text.count("registered with") == 2


async def test_a_lost_stream_is_made_good_by_one_with_everything(
    orchestrator: LoopbackOrchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.bridge.registration.BACKOFF_FIRST_S", 0.01)
    async with running(address(orchestrator), capacity(a=1)) as bridge:
        await registered(orchestrator)
        bridge.capacities.put_nowait(capacity(a=3))
        await until_advertised(orchestrator, capacity(a=3))
        orchestrator.workers[1].end_stream()
        await orchestrator.wait_for_workers(
            lambda workers: [dict(advertised((worker,))) for worker in workers] == [{"org/a": 3}]
        )


async def test_hardware_that_is_slow_to_tell_does_not_hold_up_capacity(
    orchestrator: LoopbackOrchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.bridge.registration.HARDWARE_S", 0.05)
    entries = [
        pb.HardwareInformation(pipeline="text-to-image", model_id=f"org/{name}") for name in "ab"
    ]
    asked: queue.SimpleQueue[list[pb.HardwareInformation]] = queue.SimpleQueue()
    asked.put(entries)
    async with running(address(orchestrator), capacity(a=2), read_hardware=asked.get) as bridge:
        await registered(orchestrator)
        # Nobody answers now, so what was known is told, of the models that are registered.
        for wanted in (capacity(a=1), capacity(a=1, b=1)):
            bridge.capacities.put_nowait(wanted)
            await until_advertised(orchestrator, wanted)
        assert [list(worker.hardware) for worker in orchestrator.workers] == [
            [entries[0]],
            [entries[1]],
        ]
        asked.put([])
