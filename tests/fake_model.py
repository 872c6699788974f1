"""A fake model for tests of the cluster: it computes nothing and says on which GPUs it sits."""

import asyncio
import os
from dataclasses import dataclass

import ray
from ray import serve

from deployments.app import HEALTH_CHECK_PERIOD_S, ROUTER
from deployments.model_args import DEPLOYMENT, ModelArgs


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
