"""What a Serve handle raises, and what becomes of the request. On Ray itself: tests/e2e."""

import asyncio
from collections.abc import Generator
from typing import Any

import pytest
from ray import exceptions
from ray.exceptions import ActorDiedError, ObjectLostError, RayTaskError, WorkerCrashedError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from deployments.errors import BadRequest, InferenceFailed, ReplicaBroken
from deployments.ingress.errors import Overloaded, ReplicaGone
from deployments.ingress.runner import HandleRunner, as_refusal
from deployments.schemas.base import Completed
from deployments.schemas.image_to_text import ImageToTextRequest, ImageToTextResult
from tests.deployments.ingress.standin import gpu, served

MODEL = served("image-to-text", "org/a")
REQUEST = ImageToTextRequest(image=b"x")
RESULT = ImageToTextResult(text="A bear.")
RAY: Any = exceptions
"""Some of Ray's constructors have no annotations."""


def from_replica(cause: Exception) -> RayTaskError:
    """As Ray wraps an exception of a replica; its text is the remote traceback."""
    wrapped = RAY.RayTaskError("run", "Traceback ...\nand so on", cause).as_instanceof_cause()
    assert isinstance(wrapped, RayTaskError)
    return wrapped


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (from_replica(BadRequest("width: no")), BadRequest, "width: no"),
        (from_replica(InferenceFailed("out of memory")), InferenceFailed, "out of memory"),
        (from_replica(ReplicaBroken("CUDA is broken")), ReplicaGone, "CUDA is broken"),
        (from_replica(KeyError("a bug")), InferenceFailed, "KeyError: 'a bug'"),
        (ActorDiedError(), ReplicaGone, "died"),
        (RAY.NodeDiedError("gone"), ReplicaGone, "died"),
        (WorkerCrashedError(), ReplicaGone, "died"),
        (ObjectLostError("ff" * 28, None, ""), ReplicaGone, "died"),
        (BackPressureError(num_queued_requests=1, max_queued_requests=1), Overloaded, "no replica"),
        (DeploymentUnavailableError(DeploymentID(name="model")), Overloaded, "no replica"),
        (RAY.RayError("what is this\nsecond"), InferenceFailed, "RayError: what is this"),
    ],
)
def test_failures_are_sorted(error: Exception, kind: type[Exception], text: str) -> None:
    refusal = as_refusal(error, MODEL)
    assert type(refusal) is kind
    assert text in str(refusal)
    assert "Traceback" not in str(refusal)
    if refusal.http_status == 503:
        assert str(refusal).startswith("insufficient capacity: ")


class Handle:
    """A handle whose answers are known beforehand; one that is None never comes."""

    def __init__(self, *answers: Exception | None) -> None:
        self.answers = list(answers)
        self.run = self
        self.cancelled = 0
        self.asked = 0
        self.free = asyncio.Event()

    def remote(self, request: ImageToTextRequest, *, timeout_s: float) -> "Handle":
        assert request is REQUEST
        assert timeout_s > 0
        return self

    def cancel(self) -> None:
        self.cancelled += 1

    def __await__(self) -> Generator[Any, None, Completed[ImageToTextResult]]:
        if not self.answers:
            return Completed(result=RESULT, replica="replica", compute_s=0.0)
        answer = self.answers.pop(0)
        if answer is None:
            yield from asyncio.get_running_loop().create_future()
        raise answer or AssertionError

    def broadcast(self, method: str) -> "Handle":
        assert method == "gpus"
        self.asked += 1
        return self

    async def results_async(self, *, timeout_s: float, return_exceptions: bool) -> list[Any]:
        assert timeout_s > 0
        assert return_exceptions
        await self.free.wait()
        return [[gpu("GPU-1")], ActorDiedError(), [gpu("GPU-2")]]

    def runner(self, monkeypatch: pytest.MonkeyPatch) -> HandleRunner:
        """A runner with this handle for every model."""
        monkeypatch.setattr("ray.serve.get_app_handle", lambda _: self)
        return HandleRunner()


@pytest.mark.parametrize("lost", [ActorDiedError(), from_replica(ReplicaBroken("no GPU"))])
async def test_what_a_replica_left_behind_is_run_again_once(
    lost: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await Handle(lost).runner(monkeypatch).run(MODEL, REQUEST) == RESULT
    with pytest.raises(ReplicaGone):
        await Handle(lost, lost).runner(monkeypatch).run(MODEL, REQUEST)


async def test_what_failed_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = Handle(from_replica(InferenceFailed("no")), AssertionError("again"))
    with pytest.raises(InferenceFailed):
        await handle.runner(monkeypatch).run(MODEL, REQUEST)


async def test_who_leaves_cancels_the_replica_s_work(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = Handle(None)
    running = asyncio.create_task(handle.runner(monkeypatch).run(MODEL, REQUEST))
    while handle.answers:
        await asyncio.sleep(0.001)
    running.cancel()
    await asyncio.wait({running})
    assert handle.cancelled == 1


async def test_a_busy_replica_is_asked_once_for_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.ingress.runner.FACTS_TIMEOUT_S", 0.01)
    handle = Handle()
    runner = handle.runner(monkeypatch)
    assert [await runner.gpus(MODEL) for _ in range(2)] == [(), ()]
    assert handle.asked == 1
    handle.free.set()
    await asyncio.gather(*runner._asking.values())
    handle.free.clear()
    # While it is busy again, what it told last holds.
    assert await runner.gpus(MODEL) == [gpu("GPU-1"), gpu("GPU-2")]
    assert handle.asked == 2
    handle.free.set()
    await asyncio.gather(*runner._asking.values())
