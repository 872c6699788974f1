"""Mutated jobs and mutated replies: nothing crashes, and every job is answered.

A few hundred by default; `FUZZ_EXAMPLES=10000` for more. The seed is fixed, so a failure repeats.
"""

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import SecretStr

from cluster.bridge.address import Address
from cluster.bridge.job import Job
from cluster.bridge.peer import Peer
from cluster.bridge.results import Delivery, failure
from cluster.errors import InsufficientCapacity
from cluster.loopback import JobFailed, LoopbackOrchestrator
from deployments.registry import PIPELINES
from tests.cluster.bridge.conftest import address, capacity, registered, running

SEED = 20261122
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 2**63, 1e308, -0.0, "", "x", "\ud800", "\x00", "a\r\nb: c"),
    *([], {}, [[]], {"a": None}, "9" * 5000, [0] * 2000, "{" * 2000, "org/a", "org/b"),
]
INSERTS = [b"\x00", b'"', b"{", b"\xff\xfe", b"\r\n\r\n", b"[" * 50]
NAMES = ["prompt", "model_id", "model", "width", "seed", "loras", "messages", "image", "stream"]


def mutated(message: bytes, chance: random.Random) -> bytes:
    """Returns the message with bytes changed, lost, doubled or cut off."""
    data = bytearray(message)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(5):
            case 0:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del data[at : at + chance.randint(1, 8)]
            case 2:
                data[at:at] = data[at : at + chance.randint(1, 40)]
            case 3:
                data[at:at] = chance.choice(
                    [b"\x00", b'"', b"{", b"\xff\xfe", b"\r\n\r\n", b"[" * 50]
                )
            case _:
                del data[at:]
    return bytes(data)


def any_job(chance: random.Random) -> tuple[str, bytes]:
    """Returns a pipeline and a job for it, wrong in its values, its bytes or both."""
    request: dict[str, Any] = {"prompt": "a cat", "model_id": "org/a"}
    for name in chance.sample(NAMES, chance.randint(0, 4)):
        request[name] = chance.choice(VALUES)
    envelope: dict[str, object] = {"input_url": "", "request": request}
    if chance.random() < 0.3:
        envelope[chance.choice(["input_url", "request", "more"])] = chance.choice(VALUES)
    data = json.dumps(envelope).encode()
    pipeline = chance.choice(["text-to-image", "text-to-image", *PIPELINES, "a\nb", ""])
    return pipeline, mutated(data, chance) if chance.random() < 0.6 else data


async def test_every_mutated_job_is_answered(orchestrator: LoopbackOrchestrator) -> None:
    chance = random.Random(SEED)  # noqa: S311 - not a secret
    async with running(address(orchestrator), capacity(a=8), queue_s=60.0) as bridge:
        await registered(orchestrator)
        answers = {"served": 0, "failed": 0}
        for _ in range(EXAMPLES):
            pipeline, data = any_job(chance)
            try:
                async with asyncio.timeout(60):
                    await orchestrator.send_job(
                        worker=orchestrator.workers[0],
                        pipeline=pipeline,
                        request_data=data,
                    )
                answers["served"] += 1
            except JobFailed as failed:
                text = str(failed)
                assert "returned 400: " in text or "insufficient capacity: " in text, text
                answers["failed"] += 1
        assert not bridge.task.done()
    assert len(bridge.records) == EXAMPLES == sum(answers.values())
    assert min(answers.values()) > 0


REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 2\r\n\r\nok"


@asynccontextmanager
async def replying(chance: random.Random) -> AsyncIterator[Peer]:
    """Reads what comes and answers with a mutated reply, in plaintext."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            writer.write(mutated(REPLY, chance))
            await writer.drain()
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    yield Peer(address=Address("127.0.0.1", port, tls=False))
    server.close()
    await server.wait_closed()


async def test_no_mutated_reply_ends_the_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing is tried again: whether it would be is another test's matter.
    monkeypatch.setattr("cluster.bridge.results.JOB_LIMIT_S", 0.0)
    chance = random.Random(SEED)  # noqa: S311 - not a secret
    taken = 0
    async with replying(chance) as peer, Delivery(secret=SecretStr("s3cret")) as delivery:
        for task_id in range(EXAMPLES):
            job = Job(
                task_id=task_id,
                pipeline="llm",
                data=b"",
                peer=peer,
                received_at=asyncio.get_running_loop().time(),
            )
            answer = failure(InsufficientCapacity("no"), "llm")
            async with asyncio.timeout(60):
                taken += await delivery.deliver(job, answer)
    assert 0 < taken < EXAMPLES
