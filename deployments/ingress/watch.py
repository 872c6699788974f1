"""Looks at the replicas all the time, so that no request has to."""

import asyncio
import logging
from collections.abc import Callable, Mapping

from ray import serve
from ray.serve.schema import ApplicationStatus

from deployments.ingress.served import Seen
from deployments.model_args import DEPLOYMENT
from deployments.replica_states import AT_WORK, COMING

logger = logging.getLogger("ray.serve")

INTERVAL_S = 0.5
"""Between two looks, of 20 ms each in a thread."""

FAILED = frozenset({ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY})


async def watch(
    see: Callable[[Mapping[str, Seen]], None],
    *,
    read: Callable[[], Mapping[str, Seen]],
    interval_s: float = INTERVAL_S,
) -> None:
    """Tells what the replicas do, for ever. While Serve is silent, what it said last holds.

    Args:
        see: takes it.
        read: asks Serve; blocking.
        interval_s: between two looks.
    """
    silent = False
    while True:
        try:
            seen = await asyncio.to_thread(read)
        except Exception as error:  # noqa: BLE001 - whatever Ray raises while it restarts
            if not silent:
                logger.warning("Serve does not tell its state: %r", error)
            silent = True
        else:
            silent = False
            see(seen)
        await asyncio.sleep(interval_s)


def applications() -> dict[str, Seen]:
    """Returns Serve's applications as they are now; blocking."""
    seen = {}
    for name, application in serve.status().applications.items():
        deployment = application.deployments.get(DEPLOYMENT)
        replicas = deployment.replica_states if deployment else {}
        # Declared as an enum's members, and text where the state has come from the controller.
        states = {str(getattr(state, "value", state)): n for state, n in replicas.items()}
        seen[name] = Seen(
            running=sum(states.get(state, 0) for state in AT_WORK),
            starting=sum(states.get(state, 0) for state in COMING),
            failed=application.status in FAILED,
            rebuilding=deployment is None and application.status == ApplicationStatus.DEPLOYING,
        )
    return seen
