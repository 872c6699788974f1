"""What the routes call: from a request's parameters to its response."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import Request, UploadFile
from fastapi.responses import Response

from deployments.hardware import GPU
from deployments.ingress.answers import document_response, events_response
from deployments.ingress.config import IngressConfig, ModelKey, ServedModel
from deployments.ingress.errors import Overloaded, TooLarge
from deployments.ingress.guard import Guard
from deployments.ingress.runner import Runner
from deployments.ingress.served import Health, Served
from deployments.registry import Pipeline
from deployments.replica import DEADLINE_S
from deployments.schemas.base import Chunk
from deployments.schemas.base import Request as Work


class Service:
    """The models that are served, who may use them and what runs them."""

    def __init__(self, runner: Runner, *, sees_clients: bool = True) -> None:
        """Serves nothing yet; see `configure`.

        Args:
            runner: what runs the requests.
            sees_clients: as `Guard` takes it.
        """
        self.served = Served()
        self.guard = Guard(sees_clients=sees_clients)
        self.under_way = 0
        """Requests, from before their body is read."""
        self._sees_clients = sees_clients
        self._runner = runner

    def configure(self, config: IngressConfig) -> None:
        """Replaces models and tokens; requests that are under way go on."""
        self.served.configure(config.models)
        self.guard = Guard(config.tokens, sees_clients=self._sees_clients)

    def health(self, address: ModelKey | None) -> Health:
        """Tells the health of one model, or without an address that of all.

        Raises:
            NotServed: there is nothing at the address.
        """
        if address is None:
            return self.served.overall_health()
        return self.served.health(self.served.at(address))

    def about(self, address: ModelKey | None) -> ModelKey:
        """Tells which model an address speaks of; at the root the only one, or none of several.

        Raises:
            NotServed: as `health`.
        """
        if address is not None:
            return self.served.at(address).key
        models = self.served.models
        return models[0].key if len(models) == 1 else ModelKey("", "")

    async def gpus(self, address: ModelKey | None) -> Sequence[GPU]:
        """Tells the GPUs of one model's replicas, or of all.

        Raises:
            NotServed: as `health`.
        """
        models = self.served.models if address is None else [self.served.at(address)]
        found = await asyncio.gather(*(self._runner.gpus(model) for model in models))
        # Several small models may share a card.
        return list({gpu.id: gpu for gpus in found for gpu in gpus}.values())

    async def answer(
        self, request: Request, pipeline: Pipeline, parameters: dict[str, Any]
    ) -> Response:
        """Serves one request.

        Args:
            request: for who asks and at which address.
            pipeline: what for.
            parameters: as they came, with types but not checked; absent ones may be None.

        Raises:
            Refused: it does not get as far as a model.
            ReplicaError: the model did not serve it.
        """
        given = {name: value for name, value in parameters.items() if value is not None}
        model = self.served.choose(
            pipeline.name,
            asked=given.get(pipeline.model_field, ""),
            base=request.path_params.get("base"),
        )
        self.guard.authorize(request, model.key)
        # A file is read only with a slot to run it: the others stay on disk.
        with self.served.slot(model):
            if pipeline.file:
                given[pipeline.file] = await _read(given[pipeline.file], pipeline)
            work = pipeline.request.parse(given).for_http()
            if not work.wants_stream:
                async with _in_time(model):
                    return document_response(await self._runner.run(model, work))
        chunks = self._chunks(model, work)
        # Until the first one is there, what goes wrong can be told by the status.
        async with _in_time(model):
            first = await anext(chunks)
        return events_response(first, chunks)

    async def _chunks(self, model: ServedModel, work: Work) -> AsyncGenerator[Chunk, None]:
        """Holds a slot until the last chunk has been taken."""
        with self.served.slot(model):
            async with aclosing(self._runner.stream(model, work)) as chunks:
                async for chunk in chunks:
                    yield chunk


@asynccontextmanager
async def _in_time(model: ServedModel) -> AsyncIterator[None]:
    """Bounds the wait for a replica, whose own deadline begins when it has the request."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield
    except TimeoutError:
        raise Overloaded(f"{model.key} did not answer within {DEADLINE_S:.0f} s") from None


async def _read(file: UploadFile, pipeline: Pipeline) -> bytes:
    if (file.size or 0) > pipeline.max_file_bytes:
        raise TooLarge(
            f"{pipeline.file}: {file.size} bytes are more than {pipeline.max_file_bytes}"
        )
    return await file.read()
