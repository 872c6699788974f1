"""The external containers of an aiModels.json: a backend for each, and the watch over it."""

import asyncio
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Self

import aiohttp

from cluster.ai_models import AIModel, ModelKey
from cluster.backends.external import ExternalBackend
from cluster.backends.external_health import INTERVAL_S, REST_S, START_S
from cluster.backends.shared import Place
from cluster.capacity import Capacity, ModelCapacity
from deployments.hardware import GPU

VERSION = re.compile(r"v?(\d+)(?:\.(\d+))?(?:\.(\d+))?(?:[-+].*)?", re.ASCII)


class Containers:
    """An async context manager; the containers are watched while it is open."""

    def __init__(
        self,
        *,
        start_s: float = START_S,
        interval_s: float = INTERVAL_S,
        rest_s: float = REST_S,
    ) -> None:
        """Has no containers until `configure`; times are as for `Health`."""
        self._times = {"start_s": start_s, "interval_s": interval_s, "rest_s": rest_s}
        self._http: aiohttp.ClientSession | None = None
        self._containers: dict[tuple[ModelKey, str], ExternalBackend] = {}
        self._watches: dict[ExternalBackend, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        """Opens the session, without connections yet."""
        self._http = aiohttp.ClientSession(
            # What jobs and checks wait for they say themselves.
            timeout=aiohttp.ClientTimeout(total=None),
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            # What is compressed could be of any size, and what is answered here hardly shrinks.
            auto_decompress=False,
            headers={"Accept-Encoding": "identity"},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stops watching and closes the connections."""
        watches = list(self._watches.values())
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        if self._http is not None:
            await self._http.close()

    def configure(self, models: Sequence[AIModel]) -> None:
        """Takes the entries that have a url. One that stays keeps its health, if its token does.

        Jobs that run on a container that goes are finished.
        """
        if self._http is None:
            raise RuntimeError("Containers is used as an async context manager")
        before, self._containers = self._containers, {}
        for model in models:
            if not model.url:
                continue
            place = model.key, model.url
            container = before.get(place)
            if container is None or container.model.token != model.token:
                container = ExternalBackend(model, http=self._http, **self._times)
                self._watches[container] = asyncio.create_task(container.health.watch())
            container.model = model
            self._containers[place] = container
        for container in self._watches.keys() - set(self._containers.values()):
            self._watches.pop(container).cancel()

    def places(self) -> dict[ModelKey, list[Place]]:
        """Each container as a place of its model."""
        places: defaultdict[ModelKey, list[Place]] = defaultdict(list)
        for (key, url), container in self._containers.items():
            places[key].append(Place(name=url, backend=container, slots=container.slots))
        return dict(places)

    def __iter__(self) -> Iterator[ExternalBackend]:
        return iter(tuple(self._containers.values()))

    def capacity(self) -> Capacity:
        """The slots of the containers that are ready, by model."""
        ready: defaultdict[ModelKey, list[ExternalBackend]] = defaultdict(list)
        for container in self:
            if container.slots():
                ready[container.model.key].append(container)
        return Capacity(
            models={
                key: ModelCapacity(
                    slots=sum(container.slots() for container in containers),
                    warm=containers[0].model.warm,
                    runner_version=lowest(one.health.facts.version for one in containers),
                )
                for key, containers in ready.items()
            }
        )

    def with_gpus(self, gpus: Mapping[ModelKey, Sequence[GPU]]) -> dict[ModelKey, Sequence[GPU]]:
        """Adds what the containers reported to other GPUs. For any thread."""
        together: defaultdict[ModelKey, list[GPU]] = defaultdict(list)
        for key, found in gpus.items():
            together[key] += found
        for container in self:
            together[container.model.key] += container.health.facts.gpus
        return dict(together)


def lowest(versions: Iterable[str]) -> str:
    """The lowest version, empty without any: what go-livepeer advertises (ai/worker/utils.go).

    What is no version is left out.
    """
    found = [(match, version) for version in versions if (match := VERSION.fullmatch(version))]
    if not found:
        return ""
    return min(found, key=lambda pair: [int(part or 0) for part in pair[0].groups()])[1]
