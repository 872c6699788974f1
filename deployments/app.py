"""What Serve's `import_path` names: `deployments.app:build`.

Serve imports and calls this in a task of its own before any replica starts, so nothing here
or in the replicas' modules imports torch or diffusers.
"""

import importlib
from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig

from deployments.model_args import DEPLOYMENT, ModelArgs
from deployments.registry import PIPELINES
from deployments.replica import Replica
from deployments.routing import FreeReplicaRouter

HEALTH_CHECK_PERIOD_S = 1.0
"""A killed replica is noticed in 0.2 s with this, in 7 s with Serve's default of 10."""

HEALTH_CHECK_TIMEOUT_S = 30.0
"""A health check waits for the event loop only; even a loaded node answers within this."""

GRACEFUL_SHUTDOWN_TIMEOUT_S = 600.0
"""A replica that leaves first finishes its requests; none may run for longer than ten minutes,
after which the orchestrator no longer stores results (go-livepeer, request storage)."""

ROUTER = RequestRouterConfig.model_validate({"request_router_class": FreeReplicaRouter})


def build(args: ModelArgs) -> serve.Application:
    """Returns the application of one model, by the registry.

    Raises:
        ValueError: for a pipeline that is not in the registry.
    """
    return application(replica_class(args.pipeline, args.model_id, args.engine), args)


def application(replica: type[Replica[Any, Any, Any]], args: ModelArgs) -> serve.Application:
    """Returns the application of one model and one replica class.

    Replicas, their resources and their slots are the Serve config's to set, under the name
    `DEPLOYMENT`.
    """
    deployment = serve.deployment(
        name=DEPLOYMENT,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        graceful_shutdown_timeout_s=GRACEFUL_SHUTDOWN_TIMEOUT_S,
        request_router_config=ROUTER,
    )
    return deployment(replica).bind(args=args)


def replica_class(
    pipeline: str, model_id: str = "", engine: str | None = None
) -> type[Replica[Any, Any, Any]]:
    """Imports the replica class of a pipeline, or of the variant that a model or engine needs.

    Raises:
        ValueError: there is no such pipeline.
        TypeError: the registry names something that is not a replica.
    """
    if pipeline not in PIPELINES:
        raise ValueError(f"no pipeline {pipeline!r}; there are: {', '.join(PIPELINES)}")
    path = (PIPELINES[pipeline].variant(model_id, engine) or PIPELINES[pipeline]).replica
    module, _, name = path.partition(":")
    found = getattr(importlib.import_module(module), name)
    if not (isinstance(found, type) and issubclass(found, Replica)):
        raise TypeError(f"{path} is not a Replica")
    return found
