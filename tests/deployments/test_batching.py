"""Requests that wait at the same time and agree are computed as one; each gets what is its own."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deployments.batching import Share, Waiting, WaitingLine
from deployments.errors import BadRequest
from deployments.pass_memory import PassMemory
from deployments.registry import PIPELINES
from deployments.schemas.base import Request
from deployments.schemas.image_to_image import ImageToImageRequest
from deployments.time_left import TimeLeft
from tests.deployments.conftest import PATIENCE_S, TINY_SD, ObservedReplica, pixels, request
from tests.deployments.inputs import load, photo, png
from tests.deployments.test_replica import holding


class Calls(list[int]):
    """Stands before a replica's pipeline, counts the images of each call and refuses large ones."""

    def __init__(
        self, replica: Any, monkeypatch: pytest.MonkeyPatch, *, at_most: int = 1_000
    ) -> None:
        super().__init__()
        self._pipe, self._at_most = replica._pipe, at_most
        monkeypatch.setattr(replica, "_pipe", self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)

    def __call__(self, **arguments: Any) -> Any:
        if len(arguments["generator"]) > self._at_most:
            raise RuntimeError("mat1 and mat2 cannot be multiplied")
        output = self._pipe(**arguments)
        self.append(len(output.images))
        return output


async def together(replica: ObservedReplica, *requests: Any) -> Sequence[Any]:
    """Runs requests that wait for a held one at the same time; returns what became of each."""
    held = await holding(replica)
    tasks = [asyncio.create_task(replica.run(asked)) for asked in requests]
    await asyncio.sleep(0)
    replica.go_on.set()
    await held
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_requests_that_agree_are_one_pass_and_get_their_own_images(
    replica: ObservedReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [
        request("a harbour", seed=3),
        request("a lighthouse", seed=4, num_images_per_prompt=2),
        request("a mill", seed=3, safety_check=False),
    ]
    alone = [(await replica.run(one)).result for one in asked]
    calls = Calls(replica, monkeypatch)
    answers = [completed.result for completed in await together(replica, *asked)]
    assert calls == [1, 4], "the held one, and the four images of the others"
    for answer, expected in zip(answers, alone, strict=True):
        assert [image.seed for image in answer.images] == [i.seed for i in expected.images]
        for one, other in zip(pixels(answer), pixels(expected), strict=True):
            # Float sums in a batch are ordered differently: one level at most (measured).
            assert abs(one - other).max() <= 1
    assert abs(pixels(answers[0])[0] - pixels(answers[2])[0]).max() > 10


@pytest.mark.parametrize(
    "other",
    [
        {"width": 72},
        {"num_inference_steps": 3},
        {"guidance_scale": 2.0},
        {"loras": '{"org/none": 0.5}'},
    ],
)
def test_what_does_not_agree_shares_nothing(
    replica: ObservedReplica, other: dict[str, Any]
) -> None:
    asked = (request(), request("a harbour", seed=9), request(**other))
    one, agreeing, another = (share and share.kind for share in map(replica.share, asked))
    assert one == agreeing
    assert one != another


async def test_a_negative_prompt_and_none_share_no_pass(
    replica: ObservedReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [request(), request(negative_prompt="fog"), request(negative_prompt="rain")]
    alone = [(await replica.run(one)).result for one in asked]
    calls = Calls(replica, monkeypatch)
    answers = await together(replica, *asked)
    assert calls == [1, 1, 2]
    for answer, expected in zip(answers, alone, strict=True):
        assert abs(pixels(answer.result)[0] - pixels(expected)[0]).max() <= 1


async def test_no_more_are_taken_together_than_fit(
    replica: ObservedReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica._memory = PassMemory(ceiling=3 * 64 * 64)
    calls = Calls(replica, monkeypatch)
    await together(replica, *(request(seed=seed) for seed in range(5)))
    assert calls == [1, 3, 2]


async def test_one_that_is_cancelled_leaves_the_others_theirs(replica: ObservedReplica) -> None:
    held = await holding(replica)
    tasks = [asyncio.create_task(replica.run(request(prompt))) for prompt in "ab"]
    await asyncio.sleep(0)
    replica.stepped.clear()
    replica.go_on.set()
    await held
    tasks[0].cancel()
    assert len((await tasks[1]).result.images) == 1
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]


async def test_when_nobody_waits_for_any_of_them_it_stops(replica: ObservedReplica) -> None:
    asked = [request(prompt, num_inference_steps=50) for prompt in "ab"]
    held = await holding(replica)
    tasks = [asyncio.create_task(replica.run(one)) for one in asked]
    await asyncio.sleep(0)
    held.cancel()
    await asyncio.gather(held, return_exceptions=True)
    # The held one ends here; theirs is held at its first step in turn.
    replica.stepped.clear()
    first_gate, replica.go_on = replica.go_on, threading.Event()
    first_gate.set()
    assert await asyncio.to_thread(replica.stepped.wait, PATIENCE_S)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    replica.go_on.set()
    await replica.run(request("last"))
    assert replica.prompts == ["held", "a", "b", "last"]
    assert replica.steps < 10


@pytest.mark.parametrize("cleans_up", [True, False])
async def test_what_fails_together_is_computed_again_each_alone(
    replica: ObservedReplica, monkeypatch: pytest.MonkeyPatch, cleans_up: bool
) -> None:
    def fail() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    if not cleans_up:
        monkeypatch.setattr(torch.cuda, "empty_cache", fail)
    calls = Calls(replica, monkeypatch, at_most=1)
    answers = await together(replica, *(request(prompt) for prompt in "abc"))
    assert [len(answer.result.images) for answer in answers] == [1, 1, 1]
    assert replica.prompts == ["held", *"abc", *"abc"]
    assert calls == [1, 1, 1, 1]


async def test_a_bad_request_among_them_is_the_only_one_refused(
    tiny_models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = load("image-to-image", TINY_SD, tiny_models_dir)
    good = png(photo())
    # As large as the others by its header, and nothing behind it.
    broken = good[: len(good) // 2]
    asked = [
        ImageToImageRequest(image=image, prompt="a", num_inference_steps=2, seed=1)
        for image in (good, broken, good)
    ]
    calls = Calls(replica, monkeypatch)
    results = await asyncio.gather(
        *(replica.run(one) for one in [asked[0], *asked]), return_exceptions=True
    )
    kinds = [type(result).__name__ for result in results]
    assert kinds == ["Completed", "Completed", "BadRequest", "Completed"]
    assert calls[0] == 1
    assert isinstance(results[2], BadRequest)
    replica.close()


@pytest.mark.parametrize("kind", ["instruct-pix2pix", "upscaler"])
def test_images_of_others_do_not_show(kind: str, tiny_models_dir: Path) -> None:
    pipeline = "upscale" if kind == "upscaler" else "image-to-image"
    replica = load(pipeline, f"livepeer-ray/tiny-{kind}", tiny_models_dir)
    ask = PIPELINES[pipeline].request.parse
    asked = [
        ask(
            {
                "image": png(photo(seed=seed)),
                "seed": seed,
                "num_inference_steps": 2,
                "prompt": prompt,
            }
        )
        for seed, prompt in enumerate(["a harbour", "a mill"])
    ]
    rendered = replica.infer_together(asked, lambda: None)
    assert replica.share(asked[0]).kind == replica.share(asked[1]).kind
    for one, together in zip(asked, rendered, strict=True):
        alone = replica.infer(one, lambda: None).pixels.astype(np.int16)
        assert abs(alone - together.pixels).max() <= 1
    assert abs(rendered[0].pixels.astype(np.int16) - rendered[1].pixels).max() > 10
    replica.close()


class Gauge:
    """A device on which each pass takes what it is told."""

    free = 1_000_000
    took = 0

    def free_bytes(self) -> int:
        return self.free

    def begin(self) -> None: ...

    def peak_bytes(self) -> int:
        return self.took


def test_passes_have_what_the_measured_memory_allows() -> None:
    gauge = Gauge()
    memory = PassMemory(gauge=gauge, ceiling=10_000)
    assert memory.max_pixels == 10_000, "nothing is known yet"
    gauge.took = 100_000
    with memory.measured(pixels=500):
        pass
    assert memory.max_pixels == 1_000_000 * 0.8 / 200
    gauge.free = 100_000
    assert memory.max_pixels == 400
    gauge.took = 50_000
    with memory.measured(pixels=100):
        pass
    assert memory.max_pixels == 400, "a smaller pass tells less"


def test_out_of_memory_halves_the_next_pass_and_success_doubles_it() -> None:
    memory = PassMemory(ceiling=10_000)
    with pytest.raises(torch.OutOfMemoryError), memory.measured(pixels=3_000):
        raise torch.OutOfMemoryError
    assert memory.max_pixels == 1_500
    for expected in (3_000, 6_000, 10_000, 10_000):
        with memory.measured(pixels=1_500):
            pass
        assert memory.max_pixels == expected


class Sized(Request):
    """A request of a kind and a size."""

    kind: int
    size: int


@given(
    asked=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.booleans()), max_size=12),
    limit=st.integers(0, 8),
)
def test_the_line_serves_everybody_once_and_the_first_first(
    asked: list[tuple[int, int, bool]], limit: int
) -> None:
    """Kind 0 is never shared; the third of each is whether it has been cancelled."""
    line = WaitingLine[Sized, str]()
    everybody = []
    for kind, size, cancelled in asked:
        waiting = Waiting[Sized, str](
            request=Sized(kind=kind, size=size), left=TimeLeft(timeout_s=1)
        )
        line.join(waiting)
        if cancelled:
            waiting.done.cancel()
        else:
            everybody.append(waiting)

    def share(one: Sized) -> Share | None:
        return Share(kind=one.kind, size=one.size, limit=limit) if one.kind else None

    served: list[Waiting[Sized, str]] = []
    while group := line.leave(share):
        remaining = [waiting for waiting in everybody if waiting not in served]
        assert group[0] is remaining[0]
        assert group == [waiting for waiting in remaining if waiting in group], "in their order"
        if len(group) > 1:
            assert {waiting.request.kind for waiting in group} == {group[0].request.kind} != {0}
            assert sum(waiting.request.size for waiting in group) <= limit
        served += group
    assert len(served) == len(everybody)
