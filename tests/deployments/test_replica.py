"""What all replicas share: order, health, cancellation, failures."""

import asyncio
import gc
import re
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from deployments import replica as replica_module
from deployments import time_left
from deployments.errors import (
    BadRequest,
    InferenceFailed,
    LivepeerRayError,
    ModelBroken,
    ReplicaBroken,
)
from deployments.pass_memory import CudaGauge, PassMemory
from deployments.replica import DEADLINE_S, STUCK_S, Replica
from deployments.schemas.base import Result
from deployments.schemas.text_to_image import TextToImageRequest
from tests.deployments.conftest import PATIENCE_S, ObservedReplica, args, request


@dataclass(frozen=True)
class Echo(Result):
    """The prompt, as the result."""

    prompt: str

    def document(self, urls: object) -> dict[str, object]:  # noqa: ARG002 (has no files)
        return {"prompt": self.prompt}


class EchoReplica(Replica[TextToImageRequest, str, Echo]):
    """The smallest replica: no model, answers with the prompt."""

    def load(self, snapshot: Path) -> None:
        assert snapshot.is_dir()

    def warm_up_request(self) -> TextToImageRequest:
        return request("warm-up")

    def describe(self, request: TextToImageRequest) -> str:
        return f"{len(request.prompt)} characters"

    def infer(self, request: TextToImageRequest, raise_if_cancelled: Callable[[], None]) -> str:
        raise_if_cancelled()
        return request.prompt

    def encode(self, request: TextToImageRequest, raw: str) -> Echo:  # noqa: ARG002 (needs nothing of it)
        if raw == "not encodable":
            raise ValueError("this cannot\nbe encoded")
        return Echo(raw)


async def holding(replica: ObservedReplica, **parameters: int) -> asyncio.Task[object]:
    """Starts a request and returns when the model is in its first step, which it holds."""
    replica.go_on.clear()
    replica.stepped.clear()
    task = asyncio.create_task(replica.run(request("held", **parameters)))
    await asyncio.to_thread(replica.stepped.wait)
    return task


async def test_health_answers_while_the_model_computes(replica: ObservedReplica) -> None:
    running = await holding(replica)
    await replica.check_health()
    assert not running.done()
    replica.go_on.set()
    await running


async def test_requests_run_one_at_a_time_in_their_order(replica: ObservedReplica) -> None:
    first = await holding(replica)
    others = [asyncio.create_task(replica.run(request(prompt))) for prompt in "bcd"]
    await asyncio.sleep(0)
    assert replica.prompts == ["held"]
    replica.go_on.set()
    await asyncio.gather(first, *others)
    assert replica.prompts == ["held", *"bcd"]


async def test_a_cancelled_request_stops_at_its_next_step(replica: ObservedReplica) -> None:
    running = await holding(replica, num_inference_steps=50)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    steps_when_cancelled = replica.steps
    replica.go_on.set()
    await replica.run(request(num_inference_steps=2))
    # The held step, and what the second request added; PNDM takes one step more than asked.
    assert steps_when_cancelled == 1
    assert replica.steps < 1 + 10


async def test_a_cancelled_request_in_the_queue_never_starts(replica: ObservedReplica) -> None:
    running = await holding(replica)
    waiting = asyncio.create_task(replica.run(request("cancelled in the queue")))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    replica.go_on.set()
    await running
    await replica.run(request("next"))
    assert replica.prompts == ["held", "next"]


async def test_out_of_memory_names_the_size_and_the_replica_goes_on(
    replica: ObservedReplica,
) -> None:
    replica.failure = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
    with pytest.raises(BadRequest) as error:
        await replica.run(request("large", width=128, num_images_per_prompt=3))
    text = "out of GPU memory at 128x64, 3 images, 2 steps; ask for less of it"
    assert str(error.value) == text
    assert replica.prompts == ["large"] * 2, "once more, and not for ever"
    replica.reset()
    await replica.check_health()
    assert len((await replica.run(request())).result.images) == 1


async def test_what_is_out_of_memory_once_is_computed_again(replica: ObservedReplica) -> None:
    replica.failure = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    replica.failures = 1
    assert len((await replica.run(request())).result.images) == 1
    assert replica.failures == 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time by which requests end; `now` may be set."""
    clock = SimpleNamespace(now=1_000.0)
    monkeypatch.setattr(time_left, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


async def test_a_request_stops_at_its_deadline(
    replica: ObservedReplica, clock: SimpleNamespace
) -> None:
    running = await holding(replica)
    clock.now += DEADLINE_S
    replica.go_on.set()
    with pytest.raises(InferenceFailed, match="its time was over"):
        await running
    assert replica.steps == 1
    assert len((await replica.run(request())).result.images) == 1


async def test_a_model_that_does_not_stop_makes_the_replica_unhealthy(
    replica: ObservedReplica, clock: SimpleNamespace
) -> None:
    running = await holding(replica)
    running.cancel()
    await asyncio.wait({running})
    clock.now += STUCK_S
    await replica.check_health()
    clock.now += 5
    with pytest.raises(LivepeerRayError, match="the model is stuck, it should have stopped 65 s"):
        await replica.check_health()
    replica.go_on.set()
    await replica.run(request())
    await replica.check_health()


async def test_any_other_failure_is_one_line_and_logged(
    replica: ObservedReplica, serve_log: pytest.LogCaptureFixture
) -> None:
    replica.failure = RuntimeError("mat1 and mat2\ncannot be multiplied")
    with pytest.raises(InferenceFailed) as error:
        await replica.run(request())
    assert str(error.value) == "RuntimeError: mat1 and mat2 cannot be multiplied"
    assert "Traceback" in serve_log.text
    await replica.check_health()


async def test_a_broken_gpu_makes_the_replica_unhealthy(
    replica: ObservedReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "_device_fault", None)
    monkeypatch.setattr(replica_module, "probe_device", lambda: "CUDA is broken")
    replica.failure = RuntimeError("an illegal memory access was encountered")
    with pytest.raises(InferenceFailed):
        await replica.run(request())
    with pytest.raises(LivepeerRayError, match="CUDA is broken"):
        await replica.check_health()
    # Until it is replaced: others should have what it gets, and nobody is to blame.
    replica.failure = None
    with pytest.raises(ReplicaBroken, match="CUDA is broken"):
        await replica.run(request())


async def test_a_gpu_that_tells_nothing_leaves_nobody_waiting(
    replica: ObservedReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is lost between two requests: how much memory it has is asked first."""

    class Lost(CudaGauge):
        def free_bytes(self) -> int:
            raise RuntimeError("CUDA error: unspecified launch failure")

    memory = PassMemory(gauge=Lost())
    memory._bytes_per_pixel = 1.0
    held = await holding(replica)
    monkeypatch.setattr(replica, "_memory", memory)
    tasks = [asyncio.create_task(replica.run(request(prompt))) for prompt in "ab"]
    await asyncio.sleep(0)
    replica.go_on.set()
    await held
    for task in tasks:
        with pytest.raises(InferenceFailed, match="unspecified launch failure"):
            await asyncio.wait_for(task, PATIENCE_S)


@pytest.mark.parametrize("stopped_by", ["its caller", "its deadline", "what is wrong with it"])
async def test_a_request_that_ends_early_keeps_no_tensor(
    replica: ObservedReplica, clock: SimpleNamespace, stopped_by: str
) -> None:
    latents: list[weakref.ref[torch.Tensor]] = []
    watched = replica._pipe.unet.register_forward_pre_hook(
        lambda _unet, given: latents.append(weakref.ref(given[0]))
    )
    gc.collect()
    gc.disable()
    try:
        if stopped_by == "what is wrong with it":
            replica.failure = BadRequest("prompt: the model found something in it")
        running = await holding(replica)
        if stopped_by == "its caller":
            running.cancel()
            await asyncio.wait({running})
        if stopped_by == "its deadline":
            clock.now += DEADLINE_S
        replica.go_on.set()
        await asyncio.wait({running})
        await replica.vitals()  # the model thread has left the request behind
        assert latents
        assert not any(latent() is not None for latent in latents)
    finally:
        gc.enable()
        watched.remove()


async def test_a_refused_request_is_not_kept(replica: ObservedReplica) -> None:
    """Its image may have 100 MB."""
    asked = request(loras="{")
    kept = weakref.ref(asked)
    gc.collect()
    gc.disable()
    try:
        with suppress(BadRequest):
            await replica.run(asked)
        del asked
        await replica.vitals()
        assert kept() is None
    finally:
        gc.enable()


async def test_a_bad_request_passes_unchanged(replica: ObservedReplica) -> None:
    with pytest.raises(BadRequest, match=r"^loras: not JSON"):
        await replica.run(request(loras="{"))


async def test_the_answer_says_who_computed_it_and_how_long(tiny_models_dir: Path) -> None:
    echo = EchoReplica(args=args(tiny_models_dir))
    completed = await echo.run(request("hello"))
    assert completed.result == Echo("hello")
    assert completed.replica == "in-process"
    assert completed.compute_s > 0
    echo.close()


async def test_a_result_that_cannot_be_encoded_fails_its_request_only(
    tiny_models_dir: Path,
) -> None:
    echo = EchoReplica(args=args(tiny_models_dir))
    with pytest.raises(InferenceFailed, match=r"^ValueError: this cannot be encoded$"):
        await echo.run(request("not encodable"))
    assert (await echo.run(request("fine"))).result == Echo("fine")
    echo.close()


async def test_a_dead_model_thread_is_unhealthy(tiny_models_dir: Path) -> None:
    echo = EchoReplica(args=args(tiny_models_dir))
    await echo.check_health()
    echo.close()
    with pytest.raises(LivepeerRayError, match="model thread"):
        await echo.check_health()


def test_a_model_that_cannot_warm_up_is_broken(tiny_models_dir: Path) -> None:
    class Unwarmable(EchoReplica):
        """Loads and then cannot compute."""

        def warm_up_request(self) -> TextToImageRequest:
            return request("not encodable")

    with pytest.raises(ModelBroken, match="this cannot be encoded"):
        Unwarmable(args=args(tiny_models_dir))


def test_start_is_logged_with_its_times(
    tiny_models_dir: Path, serve_log: pytest.LogCaptureFixture
) -> None:
    EchoReplica(args=args(tiny_models_dir)).close()
    parts = "process .*, find .*, device .*, warm-up "
    assert re.search(rf"is ready after [\d.]+ s \({parts}[\d.]+\)", serve_log.text)
    assert "warmed up with 7 characters" in serve_log.text


async def test_a_replica_tells_how_it_started_and_what_it_takes(replica: ObservedReplica) -> None:
    vitals = await replica.vitals()
    assert vitals.device == "cpu"
    parts = ["process", "find", "imports", "weights", "device", "warm-up"]
    assert list(vitals.start_up_s) == parts
    assert all(seconds > 0 for seconds in vitals.start_up_s.values())
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    assert vitals.memory_peak_bytes > 100_000_000
    assert vitals.gpu_peak_bytes is vitals.gpu_used_bytes is None
