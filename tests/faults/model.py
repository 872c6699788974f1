"""The fake model that the load runs on, for Serve: `tests.faults.model:build`.

It takes as long as a fast image model and its answer is as large as an image, for a fault has to
meet jobs that run and uploads that are under way. Everything around it is the real thing.
"""

import asyncio

import numpy as np
from ray import serve

from deployments.app import HEALTH_CHECK_PERIOD_S, HEALTH_CHECK_TIMEOUT_S
from deployments.media import encode_png
from deployments.model_args import DEPLOYMENT, ModelArgs
from deployments.schemas.base import Completed
from deployments.schemas.images import Image, ImagesResult
from deployments.schemas.text_to_image import TextToImageRequest

JOB_S = 0.7

AT_WORK = __file__
"""A file that a replica has open while it works, which can be seen from without."""

SIDE = 384
"""Pixels. Noise cannot be compressed: the file has 440 kB."""


class FakeModel:
    """Answers every request with the same noise after `JOB_S`."""

    def __init__(self, *, args: ModelArgs) -> None:
        """Loads nothing."""
        self._replica = f"{args.model_id} {serve.get_replica_context().replica_id.unique_id}"
        self._picture = encode_png(np.random.default_rng(5).integers(0, 256, (SIDE, SIDE, 3), "u1"))

    async def run(
        self, request: TextToImageRequest, *, timeout_s: float
    ) -> Completed[ImagesResult]:
        """Waits and answers."""
        with open(AT_WORK, "rb"):  # noqa: ASYNC230, PTH123 (nothing is read)
            await asyncio.sleep(min(JOB_S, timeout_s))
        image = Image(file=self._picture, seed=request.seed or 0, nsfw=False)
        return Completed(
            result=ImagesResult(images=(image,)), replica=self._replica, compute_s=JOB_S
        )


def build(args: ModelArgs) -> serve.Application:
    """Returns the application; its health is checked as that of real models."""
    deployment = serve.deployment(
        name=DEPLOYMENT,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        graceful_shutdown_timeout_s=0,
    )
    return deployment(FakeModel).bind(args=args)
