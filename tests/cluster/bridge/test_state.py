"""What a bridge tells of itself over HTTP."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest

from cluster.bridge.state import BridgeState, ModelState, state_endpoint
from cluster.loopback import LoopbackOrchestrator
from tests.cluster.bridge.conftest import (
    SECRET,
    A,
    Ask,
    Running,
    address,
    capacity,
    registered,
    running,
)
from tests.free_ports import free_port


def state_of(bridge: Running) -> Callable[[], BridgeState]:
    def read() -> BridgeState:
        model = ModelState(
            pipeline=A.pipeline, model_id=A.model_id, warm=True, slots=2, in_flight=0
        )
        return BridgeState(models=[model], registrations=[bridge.registration.state])

    return read


@asynccontextmanager
async def asking(bridge: Running) -> AsyncIterator[Callable[[str], Any]]:
    port = free_port()
    async with (
        state_endpoint(("127.0.0.1", port), state_of(bridge), metrics=bytes),
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http,
    ):

        async def get(path: str) -> Any:
            async with http.get(path) as response:
                assert response.status == 200
                return await response.json()

        yield get


async def test_a_registration_from_its_beginning_to_its_loss() -> None:
    async with (
        AsyncExitStack() as orchestrators,
        AsyncExitStack() as stack,
    ):
        orchestrator = await orchestrators.enter_async_context(LoopbackOrchestrator(secret=SECRET))
        bridge = await stack.enter_async_context(running(address(orchestrator), capacity()))
        get = await stack.enter_async_context(asking(bridge))
        assert await get("/health") == {"status": "ok", "orchestrators": 1, "registered": 0}
        (before,) = (await get("/state"))["registrations"]
        assert (before["registered"], before["detail"]) == (False, "no capacity to offer")

        bridge.capacities.put_nowait(capacity(a=2))
        await registered(orchestrator)
        # The worker itself believes in it half a second later.
        while (await get("/health"))["registered"] != 1:
            await asyncio.sleep(0.02)
        state = await get("/state")
        assert state["models"] == [
            {
                "pipeline": "text-to-image",
                "model_id": "org/a",
                "warm": True,
                "slots": 2,
                "in_flight": 0,
            }
        ]
        (registration,) = state["registrations"]
        assert registration["orchestrator"] == orchestrator.url
        assert registration["certificate"] == orchestrator.fingerprint
        assert registration["advertised"] == [
            {
                "pipeline": "text-to-image",
                "model_id": "org/a",
                "slots": 2,
                "warm": True,
                "runner_version": "",
            }
        ]

        await orchestrators.aclose()
        while (await get("/health"))["registered"] != 0:
            await asyncio.sleep(0.02)
        while not (lost := (await get("/state"))["registrations"][0])["detail"]:
            await asyncio.sleep(0.02)
        assert lost["advertised"] == []


async def test_slots_and_jobs_in_flight(orchestrator: LoopbackOrchestrator, ask: Ask) -> None:
    async with running(address(orchestrator), capacity(a=2)) as bridge:
        await registered(orchestrator)
        assert (bridge.bridge.slots(A), bridge.bridge.in_flight.get(A, 0)) == (2, 0)
        bridge.backend.hold.clear()
        asked = asyncio.create_task(ask())
        await bridge.backend.wait_for_started(1)
        assert (bridge.bridge.slots(A), bridge.bridge.in_flight.get(A, 0)) == (2, 1)
        bridge.backend.hold.set()
        assert (await asked)[0] == 200
        assert (bridge.bridge.slots(A), bridge.bridge.in_flight.get(A, 0)) == (2, 0)


async def test_a_port_in_use_is_a_warning(
    orchestrator: LoopbackOrchestrator, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(address(orchestrator), capacity()) as bridge:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            where = listening.getsockname()[:2]
            async with state_endpoint(where, state_of(bridge), metrics=bytes):
                (record,) = (
                    record for record in caplog.records if "--state-listen" in record.getMessage()
                )
        assert record.levelno == logging.WARNING


async def test_no_endpoint() -> None:
    def never() -> BridgeState:
        raise AssertionError("nobody can ask")

    async with state_endpoint(None, never, metrics=bytes):
        pass
