"""A fake model for Serve, `benchmarks.fake_model:build`: takes a fixed time and no computing.

No weights, no torch: a replica starts in a moment and many fit on a small machine. What is
measured with it is everything around a model.
"""

import asyncio
import time

import numpy as np
from ray import serve

from deployments.app import HEALTH_CHECK_PERIOD_S, HEALTH_CHECK_TIMEOUT_S, ROUTER
from deployments.media import encode_png
from deployments.model_args import DEPLOYMENT, ModelArgs
from deployments.schemas.base import Completed
from deployments.schemas.images import Image, ImagesResult
from deployments.schemas.text_to_image import TextToImageRequest

JOB_S = 0.05


class FakeModel:
    """Answers every request with the same black picture after `JOB_S`."""

    def __init__(self, *, args: ModelArgs) -> None:
        """Loads nothing."""
        self._replica = f"{args.model_id} {serve.get_replica_context().replica_id.unique_id}"
        self._picture = encode_png(np.zeros((64, 64, 3), np.uint8))

    async def run(
        self,
        request: TextToImageRequest,
        *,
        timeout_s: float,  # noqa: ARG002 - as deployments.replica
    ) -> Completed[ImagesResult]:
        """Waits and answers."""
        began = time.perf_counter()
        await asyncio.sleep(JOB_S)
        image = Image(file=self._picture, seed=request.seed or 0, nsfw=False)
        return Completed(
            result=ImagesResult(images=(image,)),
            replica=self._replica,
            compute_s=time.perf_counter() - began,
        )


def build(args: ModelArgs) -> serve.Application:
    """Returns the application; it is checked and routed to as real models are."""
    deployment = serve.deployment(
        name=DEPLOYMENT,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        request_router_config=ROUTER,
        graceful_shutdown_timeout_s=0,
    )
    return deployment(FakeModel).bind(args=args)
