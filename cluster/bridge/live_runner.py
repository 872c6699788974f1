"""Being a set of live runners: one for each configured model, announced by heartbeats.

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
        pin: str | None = None,
    ) -> None:
        """Connects nothing yet; see `run`.

        Args:
            address: of the orchestrator.
            secret: its -orchSecret.
            runner_url: where the orchestrator reaches a model.
            pin: SHA-256 fingerprint of the orchestrator's certificate.
        """
        self._address = address
        self._secret = secret
        self._runner_url = runner_url
        self._pin = pin
        self._prices: Mapping[ModelKey, Mapping[str, Any] | None] = {}
        """Of the configured models, and of no other."""
        self._wanted = Capacity()
        self._changed = asyncio.Event()
        self._runners: dict[ModelKey, Heartbeats] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._peer: Peer | None = None
        self._problem = ""

    @property
    def state(self) -> RegistrationState:
        """Where this registration stands now."""
        # While the orchestrator is out of reach, those that left the configuration are among them.
        runners = {key: one for key, one in self._runners.items() if key in self._prices}
        advertised = {
            key: model
            for key, model in self._wanted.models.items()
            if key in runners and runners[key].registered
        }
        problems = [self._problem, *(runner.problem for runner in runners.values())]
        return RegistrationState(
            orchestrator=self._address.url,
            way="live-runner",
            registered=bool(advertised),
            detail=next(filter(None, problems), "" if self._wanted else "no capacity to offer"),
            certificate=self._peer.fingerprint if self._peer else "",
            advertised=Capacity(models=advertised),
        )

    def configure(self, prices: Mapping[ModelKey, Mapping[str, Any] | None]) -> None:
        """Replaces the configured models: others are unregistered, whatever capacity they have.

        Args:
            prices: what each costs, as heartbeats have it; needed on-chain.
        """
        self._prices = prices
        self._changed.set()

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
                await asyncio.gather(*self._leaving)

    async def _tell(
        self, http: aiohttp.ClientSession, beating: dict[ModelKey, asyncio.Task[None]]
    ) -> None:
        """Has each runner tell what it offers now. Who has nothing left to offer is hidden.

        First those who offer less, or are gone from the configuration: what they give up may be
        what others offer next.
        """
        wanted = self._announcements()
        for key in self._runners.keys() - wanted.keys():
            self._leave(self._runners.pop(key), beating.pop(key, None), http)
        fewer = {
            key: runner
            for key, runner in self._runners.items()
            if wanted[key].capacity < runner.capacity
        }
        for key, runner in fewer.items():
            runner.announce(wanted[key])
        self._start(http, beating)
        given_up = asyncio.create_task(self._given_up(fewer.values()))
        # Whoever ends instead is found by `_until_something_changes`.
        try:
            await asyncio.wait({given_up, *beating.values()}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            given_up.cancel()
        for key, announcement in wanted.items():
            if key not in self._runners and announcement.capacity:
                self._runners[key] = Heartbeats(
                    orchestrator=self._address.url, secret=self._secret, name=str(key)
                )
            if key in self._runners and key not in fewer:
                self._runners[key].announce(announcement)
        self._start(http, beating)

    def _announcements(self) -> dict[ModelKey, Announcement]:
        """What each configured model offers now."""
        return {
            key: Announcement(
                app=f"{key.pipeline}/{key.model_id}",
                runner_url=self._runner_url(key),
                capacity=self._wanted.slots(key),
                version=RUNNER_VERSION,
                price=price,
            )
            for key, price in self._prices.items()
        }

    def _leave(
        self, runner: Heartbeats, beat: asyncio.Task[None] | None, http: aiohttp.ClientSession
    ) -> None:
        """Unregisters a runner in the background."""

        async def leave() -> None:
            await _end([beat] if beat else [])
            await runner.leave(http)

        leaving = asyncio.create_task(leave())
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    async def _given_up(self, fewer: Iterable[Heartbeats]) -> None:
        """Waits until the orchestrator knows who offers less, and who is gone."""
        await _said(fewer)
        if self._leaving:
            await asyncio.wait(self._leaving)  # which, unlike gather, cancels none of them

    def _start(
        self, http: aiohttp.ClientSession, beating: dict[ModelKey, asyncio.Task[None]]
    ) -> None:
        for key in self._runners.keys() - beating.keys():
            beating[key] = asyncio.create_task(self._runners[key].run(http), name=f"live {key}")

    async def _until_something_changes(
        self, beating: Mapping[ModelKey, asyncio.Task[None]]
    ) -> None:
        """Returns on another capacity or configuration; raises what ended a runner."""
        changed = asyncio.create_task(self._changed.wait())
        answered = asyncio.create_task(self._answered())
        try:
            done, _ = await asyncio.wait(
                {changed, *beating.values()}, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            changed.cancel()
            answered.cancel()
        for task in done - {changed}:
            task.result()

    async def _answered(self) -> None:
        """Forgets why the orchestrator was out of reach, once it has answered every runner."""
        await _said(self._runners.values())
        self._problem = ""


async def _said(runners: Iterable[Heartbeats]) -> None:
    for runner in runners:
        await runner.said()


async def _end(tasks: Collection[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
