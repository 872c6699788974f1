"""What only the bridge knows, on a small HTTP endpoint: `GET /health`, `/state` and `/metrics`.

For `livepeer-ray status` and for whoever watches the process. It tells no secrets, and listens
on the loopback interface unless the operator says otherwise.
"""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from cluster.capacity import Capacity

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """One configured model."""

    pipeline: str
    model_id: str
    warm: bool
    slots: int
    """Of its running replicas, or of those that the first jobs would start, and of containers."""
    in_flight: int
    """Jobs that hold one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerState:
    """One external container."""

    pipeline: str
    model_id: str
    url: str
    slots: int
    """None while it is not ready."""
    in_flight: int
    detail: str
    """Why it is not ready."""
    runner_version: str
    gpus: Sequence[str]
    """Names of the cards that it reports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationState:
    """The worker at one orchestrator."""

    orchestrator: str
    """Its url."""
    way: str = "worker"
    """Or `live-runner`: see docs/registration.md."""
    registered: bool
    detail: str
    """Why not; empty where that is known from the capacity alone."""
    certificate: str
    """SHA-256 of what it presented, lowercase hex; empty over plaintext and before."""
    advertised: Capacity
    """What it knows of; nothing while not registered."""

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        advertised = [
            {
                **key._asdict(),
                "slots": model.slots,
                "warm": model.warm,
                "runner_version": model.runner_version,
            }
            for key, model in self.advertised.models.items()
        ]
        return {
            "orchestrator": self.orchestrator,
            "way": self.way,
            "registered": self.registered,
            "detail": self.detail,
            "certificate": self.certificate,
            "advertised": advertised,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeState:
    """A snapshot."""

    models: Sequence[ModelState]
    registrations: Sequence[RegistrationState]
    containers: Sequence[ContainerState] = ()

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "models": [asdict(model) for model in self.models],
            "containers": [asdict(container) for container in self.containers],
            "registrations": [registration.document() for registration in self.registrations],
        }


@asynccontextmanager
async def state_endpoint(
    listen: tuple[str, int] | None,
    read: Callable[[], BridgeState],
    *,
    metrics: Callable[[], bytes],
) -> AsyncIterator[None]:
    """Answers while the context is open.

    Args:
        listen: host and port; None for no endpoint. One that cannot be had is a warning: jobs
            are worth more than answers about them.
        read: the state now.
        metrics: in Prometheus' text format.
    """
    if listen is None:
        yield
        return

    async def health(_: web.Request) -> web.Response:
        registrations = read().registrations
        registered = sum(registration.registered for registration in registrations)
        return web.json_response(
            {"status": "ok", "orchestrators": len(registrations), "registered": registered}
        )

    async def state(_: web.Request) -> web.Response:
        return web.json_response(read().document())

    async def scrape(_: web.Request) -> web.Response:
        return web.Response(body=metrics(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    application = web.Application()
    application.add_routes(
        [web.get("/health", health), web.get("/state", state), web.get("/metrics", scrape)]
    )
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    host, port = listen
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            logger.warning(
                "--state-listen: nothing can listen on %s:%d (%s), so `livepeer-ray status` "
                "cannot ask this bridge; name another port if a second bridge runs here",
                host,
                port,
                error.strerror or error,
            )
        yield
    finally:
        await runner.cleanup()
