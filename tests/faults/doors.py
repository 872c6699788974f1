"""The doors through which work reaches a worker, as its orchestrator's callers see them."""

from enum import StrEnum
from typing import Any

import aiohttp

from tests.faults.cluster import MODEL_ID

PIPELINE = "text-to-image"


class Door(StrEnum):
    """One of them; its value is what the bridge's `--register` takes."""

    WORKER = "worker"
    """Jobs down the gRPC stream, answers by HTTPS."""
    LIVE_RUNNER = "live-runner"
    """Requests over HTTP, each answered on its own connection."""

    async def slots(self, orchestrator: aiohttp.ClientSession) -> int:
        """How many of the model are advertised through this door."""
        if self is Door.WORKER:
            async with orchestrator.get("/status") as response:
                models = (await response.json())["capacity"].get(PIPELINE, {})
            found: int = models.get(MODEL_ID, {"capacity": 0})["capacity"]
            return found
        return sum(runner["capacity"] for runner in await _runners(orchestrator))

    async def ask(self, orchestrator: aiohttp.ClientSession, prompt: str) -> None:
        """Asks for a picture and reads the answer, whatever it is.

        Raises:
            aiohttp.ClientError: there is none.
        """
        url, request = f"/{PIPELINE}", {"prompt": prompt, "model_id": MODEL_ID}
        if self is Door.LIVE_RUNNER:
            runners = await _runners(orchestrator)
            if not runners:
                return
            # After a bridge was killed there are two for a while, and both lead to the next one.
            url = max(runners, key=lambda runner: runner["capacity_available"])["url"] + url
        async with orchestrator.post(url, json=request) as response:
            await response.read()


async def _runners(orchestrator: aiohttp.ClientSession) -> list[dict[str, Any]]:
    """Those of the model that the orchestrator would send requests to."""
    async with orchestrator.get("/discovery") as response:
        (known,) = await response.json()
    return [
        runner for runner in known.get("runners", []) if runner["app"] == f"{PIPELINE}/{MODEL_ID}"
    ]
