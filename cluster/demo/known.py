"""What the orchestrator knows of the worker, asked as its clients do."""

from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """A live runner as clients find it."""

    base: str
    """Its path at the orchestrator."""
    capacity: int


async def slots(gateway: aiohttp.ClientSession) -> dict[str, int]:
    """The slots of each pipeline, of workers that registered over gRPC."""
    async with gateway.get("/status") as response:
        status = await response.json()
    return {
        pipeline: sum(model["capacity"] for model in models.values())
        for pipeline, models in status["capacity"].items()
    }


async def runners(gateway: aiohttp.ClientSession) -> dict[str, Runner]:
    """The live runners, by pipeline; of several models of one, the last."""
    async with gateway.get("/discovery") as response:
        (orchestrator,) = await response.json()
    return {
        runner["app"].partition("/")[0]: Runner(
            base=urlsplit(runner["url"]).path, capacity=runner["capacity"]
        )
        for runner in orchestrator.get("runners", [])
    }


async def runner_slots(gateway: aiohttp.ClientSession) -> dict[str, int]:
    """The slots of each pipeline, of live runners."""
    return {pipeline: runner.capacity for pipeline, runner in (await runners(gateway)).items()}
