"""Being a set of live runners: one for each model, announced by heartbeats.

The other way to be a worker (`cluster.bridge.registration`), to which go-livepeer is moving. Jobs
do not come this way: the orchestrator sends its clients' requests to `cluster.bridge.door`.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import aiohttp
from pydantic import SecretStr

from cluster.ai_models import ModelKey
from cluster.bridge.address import Address
from cluster.bridge.heartbeats import Announcement, Heartbeats
from cluster.bridge.peer import Peer, identify
from cluster.bridge.registration import HEALTHY_S, backoff_s
from cluster.bridge.state import RegistrationState
from cluster.capacity import Capacity
from cluster.errors import InvalidSecret, RegistrationError
from deployments.ingress.config import RUNNER_VERSION

logger = logging.getLogger(__name__)


class LiveRunnerRegistration:
    """Keeps every model registered with one orchestrator, with the latest capacity."""

    def __init__(
        self,
        *,
        address: Address,
        secret: SecretStr,
        runner_url: Callable[[ModelKey], str],
        price: Callable[[ModelKey], Mapping[str, Any] | None] = lambda _: None,
        pin: str | None = None,
    ) -> None:
        """Connects nothing yet; see `run`.

        Args:
            address: of the orchestrator.
            secret: its -orchSecret.
            runner_url: where the orchestrator reaches a model.
            price: what a model costs, as heartbeats have it; needed on-chain.
            pin: SHA-256 fingerprint of the orchestrator's certificate.
        """
        self._address = address
        self._secret = secret
        self._runner_url = runner_url
        self._price = price
        self._pin = pin
        self._wanted = Capacity()
        self._changed = asyncio.Event()
        self._runners: dict[ModelKey, Heartbeats] = {}
        self._peer: Peer | None = None
        self._problem = ""

    @property
    def state(self) -> RegistrationState:
        """Where this registration stands now."""
        known = {key for key, runner in self._runners.items() if runner.registered}
        advertised = {key: model for key, model in self._wanted.models.items() if key in known}
        problems = [self._problem, *(runner.problem for runner in self._runners.values())]
        return RegistrationState(
            orchestrator=self._address.url,
            way="live-runner",
            registered=bool(advertised),
            detail=next(filter(None, problems), "" if self._wanted else "no capacity to offer"),
            certificate=self._peer.fingerprint if self._peer else "",
            advertised=Capacity(models=advertised),
        )

    def announce(self, capacity: Capacity) -> None:
        """Makes this the capacity that the orchestrator knows.

        It knows what all models can have at the same time: a client chose its runner, and nobody
        else is asked when that has no card any more.
        """
        self._wanted = capacity.together()
        self._changed.set()

    async def run(self) -> None:
        """Registers every model, and again whenever that is needed, until cancelled.

        All have said farewell by the time it returns.

        Raises:
            InvalidSecret: trying again would not help.
        """
        failures = 0
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            try:
                await self._connected()
            except InvalidSecret:
                raise
            except RegistrationError as error:
                failures = 0 if clock() - began > HEALTHY_S else failures
                self._problem = str(error)
                pause_s = backoff_s(failures)
                failures += 1
                logger.warning("%s; trying again in %.1f s", error, pause_s)
                await asyncio.sleep(pause_s)

    async def _connected(self) -> None:
        """Works with the orchestrator that is there now; raises when it is out of reach."""
        self._peer = await identify(self._address, pin=self._pin)
        connector = aiohttp.TCPConnector(ssl=self._peer.tls or False)
        async with aiohttp.ClientSession(connector=connector) as http:
            beating: dict[ModelKey, asyncio.Task[None]] = {}
            try:
                while True:
                    self._changed.clear()
                    await self._tell(http, beating)
                    await self._until_something_changes(beating)
            except asyncio.CancelledError:
                await _end(beating.values())
                await asyncio.gather(*(runner.leave(http) for runner in self._runners.values()))
                raise
            finally:
                await _end(beating.values())

    async def _tell(
        self, http: aiohttp.ClientSession, beating: dict[ModelKey, asyncio.Task[None]]
    ) -> None:
        """Has each runner tell what it offers now. Who has nothing left to offer is hidden.

        First those who offer less: what they give up may be what others offer next.
        """
        wanted = self._wanted
        fewer = [
            key for key, runner in self._runners.items() if wanted.slots(key) < runner.capacity
        ]
        self._announce(wanted, fewer)
        self._start(http, beating)
        said = asyncio.create_task(_said([self._runners[key] for key in fewer]))
        # Whoever ends instead is found by `_until_something_changes`.
        try:
            await asyncio.wait({said, *beating.values()}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            said.cancel()
        self._announce(wanted, wanted.models)
        self._start(http, beating)

    def _announce(self, wanted: Capacity, keys: Iterable[ModelKey]) -> None:
        for key in keys:
            if key not in self._runners:
                self._runners[key] = Heartbeats(
                    orchestrator=self._address.url, secret=self._secret, name=str(key)
                )
            self._runners[key].announce(
                Announcement(
                    app=f"{key.pipeline}/{key.model_id}",
                    runner_url=self._runner_url(key),
                    capacity=wanted.slots(key),
                    version=RUNNER_VERSION,
                    price=self._price(key),
                )
            )

    def _start(
        self, http: aiohttp.ClientSession, beating: dict[ModelKey, asyncio.Task[None]]
    ) -> None:
        for key in self._runners.keys() - beating.keys():
            beating[key] = asyncio.create_task(self._runners[key].run(http), name=f"live {key}")

    async def _until_something_changes(
        self, beating: Mapping[ModelKey, asyncio.Task[None]]
    ) -> None:
        """Returns on another capacity; raises what ended a runner."""
        changed = asyncio.create_task(self._changed.wait())
        try:
            done, _ = await asyncio.wait(
                {changed, *beating.values()}, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            changed.cancel()
        self._problem = ""
        for task in done - {changed}:
            task.result()


async def _said(runners: Iterable[Heartbeats]) -> None:
    for runner in runners:
        await runner.said()


async def _end(tasks: Collection[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
