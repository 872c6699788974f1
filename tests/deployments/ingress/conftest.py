"""The HTTP API on a real port, over a stand-in for the models."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
import uvicorn
from fastapi import FastAPI

from deployments.ingress.app import create_app
from deployments.ingress.config import IngressConfig, ServedModel, Token
from deployments.ingress.served import Seen
from deployments.ingress.service import Service
from tests.deployments.ingress.standin import ONE_EACH, StandIn


@dataclass(frozen=True, kw_only=True)
class API:
    """A running API and what is behind it."""

    http: aiohttp.ClientSession
    service: Service
    models: StandIn

    def serve(self, *models: ServedModel, running: int = 1, tokens: Sequence[Token] = ()) -> None:
        """Serves these models, each with so many replicas."""
        self.service.configure(IngressConfig(models=models, tokens=tuple(tokens)))
        self.service.served.see({model.app: Seen(running=running) for model in models})

    async def post(self, path: str, **options: Any) -> tuple[int, Any]:
        """Status and document."""
        async with self.http.post(path, **options) as response:
            return response.status, await response.json()

    async def get(self, path: str, **options: Any) -> tuple[int, Any]:
        """Status and document."""
        async with self.http.get(path, **options) as response:
            return response.status, await response.json()


@dataclass(frozen=True, kw_only=True)
class Application:
    """What takes a while to make, and is the same for all tests."""

    app: FastAPI
    service: Service
    models: StandIn


@pytest.fixture(scope="session")
def application() -> Application:
    """The application over a stand-in."""
    models = StandIn()
    service = Service(models)
    return Application(app=create_app(service), service=service, models=models)


@pytest.fixture
async def api(application: Application) -> AsyncIterator[API]:
    """An API with a model of each pipeline."""
    models, service = application.models, application.service
    models.reset()
    config = uvicorn.Config(
        application.app,
        port=0,
        log_config=None,
        lifespan="off",
        timeout_keep_alive=600,  # on a busy machine 5 s are over before a connection is used again
    )
    # Without its main loop, which looks ten times a second whether it is to end.
    config.load()
    server = uvicorn.Server(config)
    server.force_exit = True  # without a wait for connections to close
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(f"http://{host}:{port}", connector=connector) as http:
        api = API(http=http, service=service, models=models)
        api.serve(*ONE_EACH.values())
        yield api
        models.go_on.set()
    await server.shutdown()
