"""What Serve's `import_path` names: the ingress as one Serve application."""

import asyncio
import os
from typing import Any

from fastapi import FastAPI
from ray import serve

from deployments.app import GRACEFUL_SHUTDOWN_TIMEOUT_S
from deployments.ingress.app import create_app
from deployments.ingress.config import DEPLOYMENT, IngressConfig
from deployments.ingress.runner import HandleRunner
from deployments.ingress.service import Service
from deployments.ingress.watch import applications, watch

MAX_ONGOING_REQUESTS = 1_000
"""More than the ingress lets in itself, so that health is told under any load."""


class Ingress:
    """One replica of the ingress: the HTTP API over the handles of all models."""

    def __init__(self) -> None:
        """Serves nothing until `reconfigure`, which Serve calls next."""
        # Serve's own proxy passes on who asks, HAProxy does not.
        haproxy = os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"
        self._service = Service(HandleRunner(), sees_clients=not haproxy)
        self._watching: asyncio.Task[None] | None = None

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes models and tokens, now and whenever they change."""
        self._service.configure(IngressConfig.model_validate(user_config))
        if self._watching is None:
            self._watching = asyncio.create_task(watch(self._service.served.see, read=applications))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Returns the application; called once, after the constructor."""
        return create_app(self._service)


def build(_args: dict[str, Any] | None = None) -> serve.Application:
    """Returns the application; what it serves is the Serve config's `user_config`."""
    deployment = serve.deployment(
        name=DEPLOYMENT,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        graceful_shutdown_timeout_s=GRACEFUL_SHUTDOWN_TIMEOUT_S,
    )
    return deployment(serve.ingress()(Ingress)).bind()
