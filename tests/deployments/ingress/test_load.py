"""Many requests at once, streams, and clients that leave."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import aiohttp

from deployments.errors import InferenceFailed
from deployments.ingress.served import Seen
from tests.deployments.ingress.conftest import API
from tests.deployments.ingress.requests import body
from tests.deployments.ingress.standin import WORDS, served

SLOTS = 64
MODEL = served("upscale", "org/a", slots=SLOTS)


async def under_way(api: API, number: int) -> None:
    """Waits until so many requests are with the model."""
    async with asyncio.timeout(30):
        while api.models.under_way != number:
            await asyncio.sleep(0.005)


def ask(api: API, number: int) -> Sequence[asyncio.Task[tuple[int, Any]]]:
    """Sends so many requests at once."""
    return [asyncio.create_task(api.post("/upscale", **body("upscale"))) for _ in range(number)]


async def test_slow_requests_hold_up_nobody_and_the_next_one_is_refused(api: API) -> None:
    api.serve(MODEL)
    api.models.go_on.clear()
    slow = ask(api, SLOTS)
    await under_way(api, SLOTS)
    assert await api.get("/health") == (200, {"status": "OK"})
    status, document = await api.post("/upscale", **body("upscale"))
    assert status == 503
    assert document["detail"]["msg"].startswith("insufficient capacity: all 64 slots")
    api.models.go_on.set()
    assert {status for status, _ in await asyncio.gather(*slow)} == {200}
    assert (await api.post("/upscale", **body("upscale")))[0] == 200


async def test_what_fails_gives_its_slot_back(api: API) -> None:
    api.serve(served("llm", "org/a"))
    for stream in (False, True):
        api.models.failure = InferenceFailed("no")
        assert (await api.post("/llm", **body("llm", stream=stream)))[0] == 500
        assert (await api.post("/llm", **body("llm", max_tokens=0)))[0] == 400
        api.models.failure = None
        assert (await api.post("/llm", **body("llm")))[0] == 200


async def test_slots_are_those_of_the_replicas_that_run(api: API) -> None:
    model = served("upscale", "org/a", slots=2)
    api.serve(model, running=3)
    api.models.go_on.clear()
    requests = ask(api, 8)
    await under_way(api, 6)
    while sum(request.done() for request in requests) < 2:
        await asyncio.sleep(0.005)
    api.models.go_on.set()
    assert sorted(status for status, _ in await asyncio.gather(*requests)) == [200] * 6 + [503] * 2


async def test_a_cold_model_takes_the_first_requests_and_a_loading_one_none(api: API) -> None:
    cold, warm = served("upscale", "org/a", cold=True), served("llm", "org/b")
    api.serve(cold, warm)
    api.service.served.see({cold.app: Seen(), warm.app: Seen(starting=1)})
    assert (await api.post("/upscale", **body("upscale")))[0] == 200
    assert (await api.post("/llm", **body("llm")))[0] == 503
    api.service.served.see({cold.app: Seen(failed=True)})
    assert (await api.post("/upscale", **body("upscale")))[0] == 503


async def events(response: aiohttp.ClientResponse) -> list[str]:
    """The data of each event."""
    lines = (await response.text()).split("\n\n")
    assert lines.pop() == ""
    assert all(line.startswith("data: ") for line in lines)
    return [line.removeprefix("data: ") for line in lines]


async def test_a_stream_arrives_word_by_word(api: API) -> None:
    api.models.go_on.clear()
    async with api.http.post("/llm", **body("llm", stream=True)) as response:
        assert response.content_type == "text/event-stream"
        # The first one is here while the model is held at the second.
        first = await response.content.readuntil(b"\n\n")
        assert b'"content":"One"' in first
        api.models.go_on.set()
        *others, done = await events(response)
    assert done == "[DONE]"
    chunks = [json.loads(event) for event in others]
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks] == list(WORDS[1:])
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == ["", "stop"]


async def test_a_stream_that_breaks_off_ends_as_one_that_is_finished(api: API) -> None:
    api.models.failure, api.models.fails_after = InferenceFailed("lost"), 1
    async with api.http.post("/llm", **body("llm", stream=True)) as response:
        assert response.status == 200
        first, last, done = await events(response)
    assert json.loads(first)["choices"][0]["delta"]["content"] == WORDS[0]
    assert json.loads(last)["choices"][0]["finish_reason"] == "error"
    assert done == "[DONE]"


async def test_a_stream_holds_its_slot_until_its_reader_has_left(api: API) -> None:
    api.serve(served("llm", "org/a"))
    api.models.go_on.clear()
    response = await api.http.post("/llm", **body("llm", stream=True))
    assert (await api.post("/llm", **body("llm")))[0] == 503
    response.close()
    async with asyncio.timeout(30):
        while not api.models.closed:
            await asyncio.sleep(0.005)
    api.models.go_on.set()
    assert (await api.post("/llm", **body("llm")))[0] == 200
