"""The door for live runners: the runner's HTTP API, served by the bridge itself.

It is the API of the cluster's ingress (deployments/ingress), but its requests take the bridge's
own slots, beside the jobs of the other registration, so that both doors together never take more
than there is.

Who may knock: whoever knows the address of a model, which is the orchestrator alone
(`cluster.bridge.runner_urls`). Nothing but the models has one: no documentation, no redirect, for
what they answer would tell the address to the orchestrator's clients.
"""

import asyncio
import itertools
import logging
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from hypercorn.asyncio import serve
from hypercorn.config import Config
from pydantic import SecretStr
from starlette.requests import Request as HTTPRequest
from starlette.responses import PlainTextResponse

from cluster.ai_models import ModelKey
from cluster.bridge.admission import may_wait
from cluster.bridge.bridge import Bridge
from cluster.bridge.disconnects import App, CancelledWhenGone, Message, Receive, Send
from cluster.bridge.event_stream import Stream
from cluster.bridge.job import Visit, Work
from cluster.bridge.runner_urls import opens, runner_url
from cluster.capacity import Capacity
from cluster.errors import (
    BadRequest,
    ConfigError,
    InferenceFailed,
    InsufficientCapacity,
    JobError,
    JobRejected,
)
from deployments.hardware import GPU
from deployments.ingress.app import create_app
from deployments.ingress.config import ModelKey as ServedKey
from deployments.ingress.config import ServedModel
from deployments.ingress.errors import Overloaded
from deployments.ingress.guard import Guard
from deployments.ingress.served import Seen
from deployments.ingress.service import Service
from deployments.registry import PIPELINES
from deployments.schemas.base import Chunk, Completed, Request, Result

logger = logging.getLogger(__name__)

SOURCE = "live-runner"
"""Free slots are shared fairly between this door and each orchestrator of the other."""

KEEP_ALIVE_S = 120.0
"""For a connection without requests. The orchestrator's proxy closes its own after 90 s (Go's
http.DefaultTransport), and has to be the first: a request that meets ours as it closes is not sent
again, and its client gets a 502."""


class Door:
    """Takes requests over HTTP and has the bridge serve them."""

    def __init__(
        self,
        *,
        bridge: Bridge,
        secret: SecretStr,
        url: str,
        gpus: Callable[[ModelKey], Sequence[GPU]] = lambda _: (),
    ) -> None:
        """Listens nowhere yet; see `listening`.

        Args:
            bridge: serves the requests.
            secret: the -orchSecret, from which the path is made: the same after a restart.
            url: where the orchestrator reaches what `listening` listens on.
            gpus: of a model's replicas; blocking.
        """
        self._bridge = bridge
        self._capacity = Capacity()
        self._secret = secret
        self._url = url
        self._service = Service(_BridgeRunner(bridge, gpus))
        self._service.guard = _WhoeverKnowsTheAddress()

    def runner_url(self, key: ModelKey) -> str:
        """The base url of one model."""
        return runner_url(self._url, self._secret, key)

    def announce(self, capacity: Capacity) -> None:
        """Takes the slots that there are now; a model without is not here now, not unknown."""
        self._capacity = capacity
        models = [
            ServedModel(
                pipeline=key.pipeline, model_id=key.model_id, app=str(key), slots=1, cold=False
            )
            for key in self._bridge.models
        ]
        self._service.served.configure(models)
        # Admission has the slots. This is what comes in at all and has its file read: a bridge
        # before us that was killed, or another orchestrator, may have been told of the same ones.
        self._service.served.see(
            {
                str(key): Seen(running=model.slots + may_wait(model.slots))
                for key, model in capacity.models.items()
            }
        )

    async def run(self) -> None:
        """Turns requests away from when it is cancelled; those that are inside go on."""
        self.announce(self._capacity)
        try:
            await asyncio.Event().wait()
        finally:
            self.announce(Capacity())

    @asynccontextmanager
    async def listening(self, host: str, port: int) -> AsyncIterator[None]:
        """Answers while the context is open.

        Raises:
            ConfigError: nothing can listen there.
        """
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host, port), family=family)
        except OSError as error:
            raise ConfigError(
                f"--runner-listen: nothing can listen on {host}:{port} ({error.strerror})"
            ) from None
        config = Config()
        config.bind = [f"fd://{listener.detach()}"]
        config.accesslog = config.errorlog = None
        config.graceful_timeout = 1.0
        config.keep_alive_timeout = KEEP_ALIVE_S
        over = asyncio.Event()
        serving = asyncio.create_task(
            serve(CancelledWhenGone(self.app()), config, shutdown_trigger=over.wait)  # type: ignore[arg-type] # hypercorn's messages are TypedDicts
        )
        try:
            yield
        finally:
            over.set()
            await asyncio.gather(serving, return_exceptions=True)

    def app(self) -> App:
        """The API below the paths that nobody can guess."""
        return _BehindTheSecret(create_app(self._service), self._secret)


class _BehindTheSecret:
    """Hands on what knows the address of the model that it asks."""

    def __init__(self, api: App, secret: SecretStr) -> None:
        self._api = api
        self._secret = secret

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if not (secret := opens(scope["path"], self._secret)):
                await PlainTextResponse("Not Found", 404)(scope, receive, send)
                return
            scope = {**scope, "path": scope["path"].removeprefix(f"/{secret}")}
        await self._api(scope, receive, send)


class _WhoeverKnowsTheAddress(Guard):
    """Lets everybody in: who came this far knows the path."""

    def admit(self, request: HTTPRequest) -> None: ...

    def authorize(self, request: HTTPRequest, key: ServedKey) -> None: ...


class _BridgeRunner:
    """The ingress' `Runner` over the bridge."""

    def __init__(self, bridge: Bridge, gpus: Callable[[ModelKey], Sequence[GPU]]) -> None:
        self._bridge = bridge
        self._gpus = gpus
        self._numbers = itertools.count(1)

    async def run(self, model: ServedModel, request: Request) -> Result:
        async with self._serving(model, request) as done:
            if isinstance(done, Stream):
                raise TypeError(f"{model.key} streams what was to be one result")
            return done.result

    async def stream(self, model: ServedModel, request: Request) -> AsyncGenerator[Chunk, None]:
        async with self._serving(model, request) as done:
            if not isinstance(done, Stream):
                raise TypeError(f"{model.key} does not stream")
            async for chunk in done.read():
                yield chunk

    async def gpus(self, model: ServedModel) -> Sequence[GPU]:
        return await asyncio.to_thread(self._gpus, ModelKey(*model.key))

    @asynccontextmanager
    async def _serving(
        self, model: ServedModel, request: Request
    ) -> AsyncIterator[Completed[Result] | Stream]:
        pipeline = PIPELINES[model.pipeline]
        visit = Visit(
            number=next(self._numbers),
            pipeline=model.pipeline,
            received_at=asyncio.get_running_loop().time(),
        )
        work = Work(
            key=ModelKey(*model.key),
            pipeline=pipeline,
            parameters=request.model_dump(exclude={pipeline.file}),
        )
        try:
            async with self._bridge.serving(visit, work, request, source=SOURCE) as done:
                yield done
        except JobError as error:
            raise _told(error) from error


def _told(error: JobError) -> Exception:
    """The error as the HTTP API tells it."""
    if isinstance(error, JobRejected):
        return BadRequest(str(error))
    if isinstance(error, InsufficientCapacity):
        return Overloaded(str(error))
    return InferenceFailed(str(error))
