"""Both doors of a worker at a real orchestrator port: requests over HTTP beside gRPC jobs."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr
from yarl import URL

from cluster.ai_models import ModelKey
from cluster.bridge.bridge import Bridge, Registration
from cluster.bridge.deadlines import Deadlines
from cluster.bridge.door import Door
from cluster.bridge.inputs import Inputs
from cluster.bridge.live_runner import LiveRunnerRegistration
from cluster.bridge.record import JobRecord
from cluster.bridge.registration import WorkerRegistration
from cluster.bridge.results import Delivery
from cluster.capacity import Capacity, ModelCapacity
from cluster.errors import ConfigError, InvalidSecret, JobRejected, ReplicaLost
from cluster.loopback import LoopbackOrchestrator
from tests.cluster.bridge.conftest import SECRET, A, Ask, SteeredBackend, address, waiting
from tests.cluster.bridge.test_event_stream import CHAT, Chat, chunk
from tests.free_ports import free_port


def capacity(*, a: int = 0, chat: int = 0) -> Capacity:
    slots = {A: a, CHAT: chat}
    return Capacity(
        models={
            key: ModelCapacity(slots=number, warm=True) for key, number in slots.items() if number
        }
    )


@dataclass
class Standing:
    """A worker that is registered through both doors."""

    orchestrator: LoopbackOrchestrator
    http: aiohttp.ClientSession
    door: Door
    image: SteeredBackend = field(default_factory=SteeredBackend)
    chat: Chat = field(default_factory=Chat)
    capacities: "asyncio.Queue[Capacity]" = field(default_factory=asyncio.Queue)
    records: list[JobRecord] = field(default_factory=list)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None

    def known(self) -> dict[str, dict[str, Any]]:
        """The ready runners, by app."""
        runners = self.orchestrator.live_runners.discovery(orchestrator=self.orchestrator.url)
        return {runner["app"]: runner for runner in runners}

    async def until_known(self, *keys: ModelKey) -> None:
        async with asyncio.timeout(20):
            while set(self.known()) != {f"{key.pipeline}/{key.model_id}" for key in keys}:
                await asyncio.sleep(0.01)

    async def draw(self, **parameters: Any) -> tuple[int, Any]:
        """Asks the runner of A through the orchestrator, as its clients do."""
        url = self.known()[f"{A.pipeline}/{A.model_id}"]["url"]
        body = {"prompt": "a cat", **parameters}
        async with self.http.post(f"{url}/text-to-image", json=body) as response:
            text = await response.text()
            return response.status, json.loads(text) if text.startswith("{") else text


@asynccontextmanager
async def standing(
    orchestrator: LoopbackOrchestrator,
    first: Capacity,
    *,
    grace_s: float = 10.0,
    queue_s: float = 0.1,
    secret: str = SECRET,
) -> AsyncIterator[Standing]:
    port = free_port()
    async with (
        Inputs() as inputs,
        Delivery(secret=SecretStr(SECRET)) as delivery,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as http,
    ):
        records: list[JobRecord] = []
        bridge = Bridge(
            backends={},
            inputs=inputs,
            delivery=delivery,
            deadlines=Deadlines(default_s=60.0),
            grace_s=grace_s,
            queue_s=queue_s,
            on_finished=records.append,
        )
        door = Door(bridge=bridge, secret=SecretStr(SECRET), url=f"http://127.0.0.1:{port}")
        one = Standing(orchestrator=orchestrator, http=http, door=door, records=records)
        bridge.serve({A: one.image, CHAT: one.chat})
        one.capacities.put_nowait(first)

        async def snapshots() -> AsyncIterator[Capacity]:
            while True:
                yield await one.capacities.get()

        live_runner = LiveRunnerRegistration(
            address=address(orchestrator), secret=SecretStr(secret), runner_url=door.runner_url
        )
        live_runner.configure({A: None, CHAT: None})
        registrations: list[Registration] = [
            live_runner,
            WorkerRegistration(
                address=address(orchestrator),
                secret=SecretStr(secret),
                version="0.9.1",
                on_job=bridge.accept,
            ),
        ]
        async with door.listening("127.0.0.1", port):
            one.task = asyncio.create_task(
                bridge.run(
                    registrations=registrations,
                    doors=[door],
                    snapshots=snapshots(),
                    stop=one.stop,
                )
            )
            try:
                yield one
            finally:
                one.image.hold.set()
                one.stop.set()
                await asyncio.gather(one.task, return_exceptions=True)


async def test_a_request_through_the_orchestrator_is_served(
    orchestrator: LoopbackOrchestrator,
) -> None:
    async with standing(orchestrator, capacity(a=2)) as worker:
        await worker.until_known(A)
        status, answer = await worker.draw(seed=7)
        assert status == 200
        assert answer["images"][0]["seed"] == 7
        assert answer["images"][0]["url"].startswith("data:image/png;base64,")
        (record,) = worker.records
        assert (record.over_http, record.outcome, record.delivered) == (True, "ok", True)
        async with asyncio.timeout(20):
            while worker.known()["text-to-image/org/a"]["capacity_used"]:
                await asyncio.sleep(0.01)


async def test_both_doors_together_take_no_more_than_there_is(
    orchestrator: LoopbackOrchestrator, ask: Ask
) -> None:
    async with standing(orchestrator, capacity(a=3)) as worker:
        await worker.until_known(A)
        await orchestrator.wait_for_workers(lambda workers: len(workers) == 1)
        worker.image.hold.clear()
        asked = [
            asyncio.create_task(job) for _ in range(6) for job in (ask(prompt="x"), worker.draw())
        ]
        await worker.image.wait_for_started(3)
        # Who waits for a slot has given up before the first of them ends.
        while sum(task.done() for task in asked) < 9:
            await asyncio.sleep(0.01)
        assert len(worker.image.started) == 3
        worker.image.hold.set()
        statuses = [status for status, _ in await asyncio.gather(*asked)]
        assert statuses.count(200) == 3
        assert set(statuses) == {200, 503}


async def test_who_comes_past_the_orchestrator_waits_for_a_slot(
    orchestrator: LoopbackOrchestrator,
) -> None:
    async with standing(orchestrator, capacity(a=1), queue_s=60.0) as worker:
        await worker.until_known(A)
        worker.image.hold.clear()
        inside = asyncio.create_task(worker.draw())
        await worker.image.wait_for_started(1)

        async def from_another_orchestrator() -> int:
            url = f"{worker.door.runner_url(A)}/text-to-image"
            async with worker.http.post(url, json={"prompt": "x"}) as response:
                return response.status

        outside = asyncio.create_task(from_another_orchestrator())
        while not (outside.done() or waiting(worker.door._bridge, A)):
            await asyncio.sleep(0.01)
        assert len(worker.image.started) == 1
        worker.image.hold.set()
        assert await outside == 200
        assert (await inside)[0] == 200


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (JobRejected("prompt: too strange"), 400, "prompt: too strange"),
        (RuntimeError("what is this"), 500, "RuntimeError in the bridge"),
    ],
)
async def test_errors_are_told_as_the_runner_does(
    orchestrator: LoopbackOrchestrator, error: Exception, status: int, words: str
) -> None:
    async with standing(orchestrator, capacity(a=1)) as worker:
        await worker.until_known(A)
        worker.image.result = error
        told, answer = await worker.draw()
        assert told == status
        assert words in answer["detail"]["msg"]
        (record,) = worker.records
        assert words in record.outcome
        assert (record.kind, record.delivered) == ("rejected" if told == 400 else "failed", True)
        assert (await worker.draw(width=-1))[0] == 400
        worker.image.result = SteeredBackend().result
        assert (await worker.draw())[0] == 200


async def test_a_request_whose_replica_died_runs_again(
    orchestrator: LoopbackOrchestrator,
) -> None:
    async with standing(orchestrator, capacity(a=1)) as worker:
        await worker.until_known(A)
        worker.image.first = [ReplicaLost("the replica died", dead="r1")]
        assert (await worker.draw())[0] == 200
        assert [record.attempts for record in worker.records] == [2]


async def test_a_stream_comes_as_it_is_made(orchestrator: LoopbackOrchestrator) -> None:
    async with standing(orchestrator, capacity(chat=1)) as worker:
        await worker.until_known(CHAT)
        url = worker.known()["llm/org/chat"]["url"]
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
        worker.chat.say(chunk("Once"))
        async with worker.http.post(f"{url}/llm", json=body) as response:
            assert response.status == 200
            first = await response.content.readline()
            assert json.loads(first.removeprefix(b"data: "))["choices"][0]["delta"] == {
                "role": "assistant",
                "content": "Once",
            }
            assert worker.known()["llm/org/chat"]["capacity_used"] == 1
            worker.chat.say(chunk(" upon", "stop", tokens=2))
            rest = await response.content.read()
        assert b"upon" in rest
        assert rest.endswith(b"data: [DONE]\n\n")
        assert [record.outcome for record in worker.records] == ["ok"]


async def test_a_client_that_leaves_frees_its_slot(orchestrator: LoopbackOrchestrator) -> None:
    async with standing(orchestrator, capacity(a=1)) as worker:
        await worker.until_known(A)
        worker.image.hold.clear()
        leaving = asyncio.create_task(worker.draw())
        await worker.image.wait_for_started(1)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        async with asyncio.timeout(20):
            while not worker.image.cancelled:
                await asyncio.sleep(0.01)
        worker.image.hold.set()
        assert (await worker.draw())[0] == 200
        assert [record.kind for record in worker.records] == ["left", "ok"]


async def test_at_the_end_nobody_new_comes_and_those_inside_are_answered(
    orchestrator: LoopbackOrchestrator,
) -> None:
    async with standing(orchestrator, capacity(a=2)) as worker:
        await worker.until_known(A)
        direct = worker.door.runner_url(A)
        worker.image.hold.clear()
        inside = asyncio.create_task(worker.draw())
        await worker.image.wait_for_started(1)
        worker.stop.set()
        await worker.until_known()
        async with worker.http.post(f"{direct}/text-to-image", json={"prompt": "x"}) as late:
            assert late.status == 503
        worker.image.hold.set()
        assert (await inside)[0] == 200


async def test_a_model_without_a_replica_is_not_unknown(orchestrator: LoopbackOrchestrator) -> None:
    async with standing(orchestrator, capacity(a=1)) as worker:
        await worker.until_known(A)
        for key, status, words in (
            (CHAT, 503, "insufficient capacity: llm org/chat has no replica now"),
            (ModelKey("llm", "org/other"), 404, "not served here"),
        ):
            url = f"{worker.door.runner_url(key)}/llm"
            body = {"messages": [{"role": "user", "content": "hi"}]}
            async with worker.http.post(url, json=body) as response:
                assert response.status == status
                assert words in await response.text()


async def test_only_who_knows_the_address_comes_in(orchestrator: LoopbackOrchestrator) -> None:
    async with standing(orchestrator, capacity(a=1)) as worker:
        await worker.until_known(A)
        base = worker.door.runner_url(A)
        secret = base.split("/")[3]
        for url in (
            base.replace(secret, "0" * len(secret)),
            base.replace(f"{secret}/", ""),
        ):
            async with worker.http.post(f"{url}/text-to-image", json={"prompt": "x"}) as response:
                assert response.status == 404
        assert worker.image.started == []
        discovery = orchestrator.live_runners.discovery(orchestrator=orchestrator.url)
        assert secret not in json.dumps(discovery)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "..%2f..%2f..",
        "..%2f..%2f..%2fopenapi.json",
        "..%2f..%2f..%2fdocs",
        "..%2f..%2f..%2fhealth",
        "..%2f..%2f..%2fllm%2forg%2fchat%2fhealth",
        "..%2f..%2f..%2f%2e%2e%2fhealth",
        "openapi.json",
        "text-to-image/x/text-to-image",
    ],
)
async def test_a_runner_leads_nowhere_else(orchestrator: LoopbackOrchestrator, path: str) -> None:
    async with standing(orchestrator, capacity(a=1, chat=1)) as worker:
        await worker.until_known(A, CHAT)
        runner = worker.known()["text-to-image/org/a"]["url"]
        secrets = [worker.door.runner_url(key).split("/")[3] for key in (A, CHAT)]
        async with worker.http.get(f"{runner}/..%2fa/health") as response:
            assert response.status == 200
        async with worker.http.get(
            URL(f"{runner}/{path}", encoded=True), allow_redirects=False
        ) as response:
            assert response.status == 404
            told = f"{response.headers} {await response.text()}"
        assert not any(secret in told for secret in secrets)


async def test_a_connection_without_requests_stays_open(
    orchestrator: LoopbackOrchestrator,
) -> None:
    made = 0

    async def count(*_: Any) -> None:
        nonlocal made
        made += 1

    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(count)
    connector = aiohttp.TCPConnector(keepalive_timeout=60)
    async with (
        standing(orchestrator, capacity(a=1)) as worker,
        aiohttp.ClientSession(connector=connector, trace_configs=[trace]) as http,
    ):
        await worker.until_known(A)
        # Servers' usual patience is 5 s.
        for pause_s in (6, 0):
            async with http.get(f"{worker.door.runner_url(A)}/health") as response:
                assert response.status == 200
                await response.read()
            await asyncio.sleep(pause_s)
        assert made == 1


async def test_a_door_alone_does_not_keep_the_bridge(orchestrator: LoopbackOrchestrator) -> None:
    async with standing(orchestrator, capacity(a=1), secret="wrong") as worker:
        assert worker.task is not None
        with pytest.raises(InvalidSecret):
            await asyncio.wait_for(worker.task, timeout=20)


async def test_a_port_that_is_taken_is_said(orchestrator: LoopbackOrchestrator) -> None:
    async with standing(orchestrator, capacity(a=1)) as worker:
        with pytest.raises(ConfigError, match=r"--runner-listen: nothing can listen on 127"):
            async with worker.door.listening("127.0.0.1", orchestrator.port):
                raise AssertionError
