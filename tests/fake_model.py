"""Fake models for tests of the cluster: they compute nothing.

One says on which GPUs it sits, the other one answers when the test says so.
"""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

import ray
from ray import serve

from deployments.app import GRACEFUL_SHUTDOWN_TIMEOUT_S, HEALTH_CHECK_PERIOD_S, ROUTER
from deployments.model_args import DEPLOYMENT, ModelArgs
from deployments.schemas.base import Completed, MediaFile
from deployments.schemas.images import Image, ImagesResult
from deployments.schemas.text_to_image import TextToImageRequest


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a replica sits."""

    node: str
    gpus: str
    """CUDA_VISIBLE_DEVICES."""
    pid: int


def place_of(_actor: object) -> Place:
    """Called in a replica."""
    return Place(
        node=ray.get_runtime_context().get_node_id(),
        gpus=os.environ["CUDA_VISIBLE_DEVICES"],
        pid=os.getpid(),
    )


class FakeModel:
    """Takes the GPUs that the Serve config gives it, and any number of seconds."""

    async def run(self, seconds: float) -> None:
        """Waits."""
        await asyncio.sleep(seconds)


def build(args: ModelArgs) -> serve.Application:  # noqa: ARG001 (as deployments.app.build)
    """Returns the application, for a Serve config's `import_path`."""
    deployment = serve.deployment(
        name=DEPLOYMENT,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        graceful_shutdown_wait_loop_s=0.1,
        request_router_config=ROUTER,
    )
    return deployment(FakeModel).bind()


class HeldModel:
    """Answers with a large file that is no picture, once there is a file where the prompt says."""

    async def run(
        self, request: TextToImageRequest, *, timeout_s: float
    ) -> Completed[ImagesResult]:
        """Waits for it."""
        async with asyncio.timeout(timeout_s):
            while not await asyncio.to_thread(Path(request.prompt).exists):
                await asyncio.sleep(0.05)
        file = MediaFile(data=b"\x89PNG\r\n\x1a\n" * 300_000, media_type="image/png")
        result = ImagesResult(images=(Image(file=file, seed=1, nsfw=False),))
        return Completed(result=result, replica=str(os.getpid()), compute_s=0.0)


def build_held(args: ModelArgs) -> serve.Application:  # noqa: ARG001 (as deployments.app.build)
    """Returns the application, whose replicas end as those of real models."""
    deployment = serve.deployment(
        name=DEPLOYMENT,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        graceful_shutdown_timeout_s=GRACEFUL_SHUTDOWN_TIMEOUT_S,
    )
    return deployment(HeldModel).bind()
