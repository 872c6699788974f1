"""One live runner at one orchestrator: it registers, calls again and again, and says farewell.

A change is told at once and not with the next beat. Facts of the wire: go-livepeer,
ai/runner/live_runner.go and server/ai_http.go.
"""

import asyncio
import contextlib
import logging
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from pydantic import BaseModel, SecretStr, ValidationError, field_validator

from cluster.bridge.registration import backoff_s
from cluster.errors import InvalidSecret, OrchestratorRefused, OrchestratorUnreachable

logger = logging.getLogger(__name__)

NOT_READY = "unavailable"
"""Any word but `ready` hides a runner. Without a slot it has to: a capacity of 0 is read as 1."""

TIMEOUT_S = 10.0
"""Of one call; half of the time after which a silent runner is forgotten."""

FAREWELL_S = 3.0

JITTER = 0.1
"""Of the interval, so that many runners do not call at the same moment."""

MAX_ANSWER_BYTES = 64 * 1024

MAX_REASON_CHARS = 300

_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """What a runner offers now."""

    app: str
    """By convention `pipeline/model_id`."""
    runner_url: str
    """Where the orchestrator sends its requests."""
    capacity: int
    """Requests at once; 0 hides the runner."""
    version: str
    price: Mapping[str, Any] | None = None
    """As `price_info` has it; on-chain every call needs one."""

    def document(self) -> dict[str, Any]:
        """The body of a heartbeat."""
        return {
            "app": self.app,
            "mode": "single-shot",
            "runner_url": self.runner_url,
            "capacity": max(self.capacity, 1),
            "status": "ready" if self.capacity else NOT_READY,
            "version": self.version,
            **({"price_info": self.price} if self.price else {}),
        }


class _Answer(BaseModel):
    """What an orchestrator says to a heartbeat."""

    runner_id: str
    heartbeat_interval: float
    heartbeat_ttl: float
    heartbeat_secret: SecretStr = SecretStr("")

    @field_validator("heartbeat_interval", "heartbeat_ttl", mode="before")
    @classmethod
    def _seconds(cls, text: Any) -> float:
        """Reads a Go duration such as `1m30s` or `500ms`."""
        parts = re.findall(r"([\d.]+)(ms|s|m|h)", str(text))
        seconds = sum(float(number) * _UNIT_S[unit] for number, unit in parts)
        if not seconds:
            raise ValueError(f"{text!r} is no duration")
        return seconds


class Heartbeats:
    """Keeps one runner known to one orchestrator."""

    def __init__(self, *, orchestrator: str, secret: SecretStr, name: str) -> None:
        """Calls nobody yet; see `run`.

        Args:
            orchestrator: its url.
            secret: its -orchSecret.
            name: for logs.
        """
        self._orchestrator = orchestrator
        self._secret = secret
        self._name = name
        self._wanted: Announcement | None = None
        self._changed = asyncio.Event()
        self._said = asyncio.Event()
        self._runner_id = ""
        self._heartbeat_secret = SecretStr("")
        self._known_until = 0.0
        self.problem = ""
        """Why it is not registered."""

    @property
    def registered(self) -> bool:
        """Whether the orchestrator still has the runner: it forgets who is silent for its TTL.

        Counted from when the last call that it answered began, so never longer than it counts.
        """
        return asyncio.get_running_loop().time() < self._known_until

    @property
    def capacity(self) -> int:
        """What is announced; 0 before anything is."""
        return self._wanted.capacity if self._wanted else 0

    def announce(self, announcement: Announcement) -> None:
        """Makes this what the orchestrator knows."""
        self._wanted = announcement
        self._said.clear()
        self._changed.set()

    async def said(self) -> None:
        """Waits until the orchestrator was told the latest announcement, or refused it."""
        await self._said.wait()

    async def run(self, http: aiohttp.ClientSession) -> None:
        """Registers and keeps calling until cancelled. What is refused is tried again later.

        Args:
            http: trusts the orchestrator's certificate.

        Raises:
            OrchestratorUnreachable: a call failed; what was told before holds until it expires.
            InvalidSecret: trying again would not help.
        """
        refusals = 0
        while True:
            self._changed.clear()
            try:
                pause_s = await self._beat(http) * random.uniform(1 - JITTER, 1)  # noqa: S311 - no secret
                self.problem, refusals = "", 0
            except OrchestratorRefused as error:
                pause_s, self.problem = backoff_s(refusals), str(error)
                refusals += 1
                logger.warning("%s; trying again in %.1f s", error, pause_s)
            if not self._changed.is_set():
                self._said.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._changed.wait()

    async def _beat(self, http: aiohttp.ClientSession) -> float:
        """Calls once; returns in how many seconds the next call is due."""
        known = bool(self._heartbeat_secret.get_secret_value())
        began = asyncio.get_running_loop().time()
        assert self._wanted is not None  # noqa: S101 - `announce` comes before `run`
        status, body = await self._post(
            http,
            "/runners/heartbeat",
            secret=self._heartbeat_secret if known else self._secret,
            document={**self._wanted.document(), "runner_id": self._runner_id},
            timeout_s=TIMEOUT_S,
        )
        if status in (401, 404) and (known or self._runner_id):
            # It was restarted, or has not heard of us for too long. The id is proposed again, so
            # that clients need not look anew, unless it is taken: until an expired runner is
            # swept away (up to 5 s), and by ourselves if the answer to our registration was lost.
            logger.info("%s has forgotten %s: registering anew", self._orchestrator, self._name)
            self._forgotten()
            if not known:
                self._runner_id = ""
            return await self._beat(http)
        self._check(status, body)
        try:
            answer = _Answer.model_validate_json(body)
        except ValidationError as error:
            finding = error.errors(include_url=False, include_input=False)[0]
            raise OrchestratorRefused(
                f"{self._orchestrator} answers heartbeats with something else: {finding['msg']}"
            ) from None
        self._runner_id = answer.runner_id
        self._known_until = began + answer.heartbeat_ttl
        if answer.heartbeat_secret.get_secret_value():
            self._heartbeat_secret = answer.heartbeat_secret
            logger.info("registered %s with %s", self._name, self._orchestrator)
        return answer.heartbeat_interval

    async def leave(self, http: aiohttp.ClientSession) -> None:
        """Says farewell; what fails is only logged, for the orchestrator forgets by itself."""
        secret = self._heartbeat_secret
        if not secret.get_secret_value():
            return
        self._forgotten()
        try:
            await self._post(
                http, f"/runners/{self._runner_id}/unregister", secret=secret, timeout_s=FAREWELL_S
            )
        except OrchestratorUnreachable as error:
            logger.info("no farewell of %s: %s", self._name, error)

    def _forgotten(self) -> None:
        self._heartbeat_secret, self._known_until = SecretStr(""), 0.0

    def _check(self, status: int, body: bytes) -> None:
        """Raises for what is not an answer."""
        if status == 200:
            return
        why = " ".join(body.decode("utf-8", "replace").split())[:MAX_REASON_CHARS]
        if status == 401:
            raise InvalidSecret(
                f"{self._orchestrator} does not accept the secret for live runners: it must be the "
                "-orchSecret of the orchestrator"
            )
        if status == 404:
            raise OrchestratorRefused(
                f"{self._orchestrator} takes no live runners ({why}): it has to run with "
                "-useLiveRunners and -orchSecret"
            )
        raise OrchestratorRefused(
            f"{self._orchestrator} refuses the live runner {self._name} with {status}: {why}"
        )

    async def _post(
        self,
        http: aiohttp.ClientSession,
        path: str,
        *,
        secret: SecretStr,
        document: Mapping[str, Any] | None = None,
        timeout_s: float,
    ) -> tuple[int, bytes]:
        try:
            async with http.post(
                f"{self._orchestrator}{path}",
                json=document,
                headers={"Authorization": secret.get_secret_value()},
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                allow_redirects=False,
            ) as response:
                return response.status, await response.content.read(MAX_ANSWER_BYTES)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            why = str(error) or type(error).__name__
            raise OrchestratorUnreachable(f"{self._orchestrator}: {why}") from error
