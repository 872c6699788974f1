"""Replicas, what they are given, and ways to see what they do with it."""

import asyncio
import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deployments.app import replica_class
from deployments.model_args import ModelArgs
from deployments.replica import Replica
from deployments.schemas.base import Request
from tests.deployments.conftest import PATIENCE_S


def photo(width: int = 64, height: int = 64, *, seed: int = 0) -> Image.Image:
    """Returns smooth colours, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def load(pipeline: str, model_id: str, models_dir: Path, **flags: Any) -> Any:
    """Returns the replica that the registry names for the pipeline, loaded."""
    return replica_class(pipeline)(
        args=ModelArgs(pipeline=pipeline, model_id=model_id, models_dir=models_dir, **flags)
    )


class Asked(dict[str, Any]):
    """Stands before a replica's pipeline and keeps the arguments of its last call."""

    def __init__(self, pipe: Any) -> None:
        super().__init__()
        self._pipe = pipe

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)

    def __call__(self, **arguments: Any) -> Any:
        self.clear()
        self.update(arguments)
        return self._pipe(**arguments)


async def outputs(replica: Any, *requests: Request) -> list[bytes]:
    """Returns the file that answers each request."""
    return [(await replica.run(request)).result.files[0].data for request in requests]


def looks(replica: Any, request: Request) -> int:
    """Returns how often the replica looks whether this request is cancelled."""
    looked: list[None] = []
    replica.infer(request, lambda: looked.append(None))
    return len(looked)


async def steps_after_cancelling(
    replica: Any, monkeypatch: pytest.MonkeyPatch, request: Request, then: Request
) -> int:
    """Cancels a request in its first step, runs another, and returns the first one's steps."""
    steps = 0
    stepped, go_on = threading.Event(), threading.Event()
    infer = replica.infer

    def observed(asked: Request, raise_if_cancelled: Callable[[], None]) -> Any:
        def held() -> None:
            nonlocal steps
            steps += 1
            stepped.set()
            assert go_on.wait(PATIENCE_S)
            raise_if_cancelled()

        return infer(asked, held)

    monkeypatch.setattr(replica, "infer", observed)
    running = asyncio.create_task(replica.run(request))
    assert await asyncio.to_thread(stepped.wait, PATIENCE_S)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    go_on.set()
    monkeypatch.undo()
    await replica.run(then)
    return steps


class Observed(Replica[Any, Any, Any]):
    """The first of two bases: counts the other's looks whether to stop, and holds it at one."""

    def __init__(self, *, args: ModelArgs) -> None:
        self.looks = 0
        self._hold_at = 0
        self._held, self._go_on = threading.Event(), threading.Event()
        super().__init__(args=args)

    def infer(self, request: Any, raise_if_cancelled: Callable[[], None]) -> Any:
        """Infers; `looks` counts anew."""
        self.looks = 0

        def observed() -> None:
            self.looks += 1
            if self.looks == self._hold_at:
                self._held.set()
                assert self._go_on.wait(PATIENCE_S)
            raise_if_cancelled()

        return super().infer(request, observed)  # type: ignore[safe-super] # the replica's own

    async def looks_when_cancelled(self, request: Request, *, at: int) -> int:
        """Cancels a request at one of its looks, and returns how many it had in the end."""
        self._hold_at = at
        self._held.clear()
        self._go_on.clear()
        running = asyncio.create_task(self.run(request))
        try:
            assert await asyncio.to_thread(self._held.wait, PATIENCE_S)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        finally:
            self._go_on.set()
            self._hold_at = 0
        await self.vitals()  # the model thread comes to it when it is done with the request
        return self.looks
