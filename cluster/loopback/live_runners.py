"""The registry of live runners: heartbeats, expiry and sessions (go-livepeer, ai/runner).

Only what single-shot runners need of it: no persistent sessions, channels, prices or static
runners. Answers and their statuses are those of live_runner.go.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hmac import compare_digest
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

MAX_METADATA_BYTES = 1_024

READY = ("", "ready")


class RunnerError(Exception):
    """What a runner or a client is told instead of an answer."""

    def __init__(self, status: int, reason: str) -> None:
        """Takes the HTTP status and the reason."""
        super().__init__(reason)
        self.status = status


class Heartbeat(BaseModel):
    """The body of `POST /runners/heartbeat`."""

    model_config = ConfigDict(frozen=True, strict=True)

    runner_id: str = ""
    runner_url: str = ""
    app: str = ""
    mode: str = "persistent"
    capacity: int = 0
    status: str = ""
    version: str = ""
    metadata: str = ""
    gpu: dict[str, Any] | None = None
    price_info: dict[str, Any] | None = None

    @field_validator("runner_id")
    @classmethod
    def _id(cls, runner_id: str) -> str:
        return runner_id.strip()

    @field_validator("runner_url")
    @classmethod
    def _absolute(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError("invalid runner_url")
        return url

    @field_validator("app")
    @classmethod
    def _trimmed(cls, app: str) -> str:
        if not app or app != app.strip():
            raise ValueError("app must be trimmed")
        return app

    @field_validator("status")
    @classmethod
    def _lowercase(cls, status: str) -> str:
        if status != status.strip().lower():
            raise ValueError("status must be lowercase and trimmed")
        return status

    @field_validator("capacity")
    @classmethod
    def _not_negative(cls, capacity: int) -> int:
        if capacity < 0:
            raise ValueError("capacity must be >= 0")
        return capacity

    @field_validator("metadata")
    @classmethod
    def _short(cls, metadata: str) -> str:
        if len(metadata.encode()) > MAX_METADATA_BYTES:
            raise ValueError(f"metadata must be at most {MAX_METADATA_BYTES} bytes")
        return metadata

    @field_validator("mode")
    @classmethod
    def _single_shot(cls, mode: str) -> str:
        if mode not in ("single-shot", "single_shot"):
            raise ValueError("only single-shot runners are understood here")
        return mode


@dataclass(slots=True, kw_only=True)
class Runner:
    """One registered runner."""

    runner_id: str
    secret: str
    """With which it sends its later heartbeats."""
    told: Heartbeat
    last_heartbeat: float
    sessions: set[str] = field(default_factory=set)

    @property
    def capacity(self) -> int:
        """Sessions at once: 0 is read as 1."""
        return self.told.capacity or 1


class LiveRunners:
    """Who has registered, and what they are at."""

    def __init__(
        self,
        *,
        secret: str,
        interval_s: float = 5.0,
        ttl_s: float = 20.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Takes the -orchSecret, how often runners are to call, and when they have expired."""
        self._secret = secret
        self._interval_s, self._ttl_s = interval_s, ttl_s
        self._now = now
        self._began = now()
        self._runners: dict[str, Runner] = {}

    def heartbeat(self, body: bytes, *, authorization: str, orchestrator: str) -> dict[str, Any]:
        """Takes a heartbeat, of a runner that is known or of a new one.

        Raises:
            RunnerError: 400, 401, 404.
        """
        try:
            told = Heartbeat.model_validate_json(body)
        except ValidationError as error:
            finding = error.errors(include_url=False)[0]
            raise RunnerError(400, finding["msg"].removeprefix("Value error, ")) from None
        self._sweep()
        runner = self._runners.get(told.runner_id)
        answer: dict[str, Any] = {
            "orchestrator": orchestrator,
            "heartbeat_interval": _duration(self._interval_s),
            "heartbeat_ttl": _duration(self._ttl_s),
        }
        if runner is None:
            if not _same(authorization, self._secret):
                raise RunnerError(401, "invalid registration authorization")
            runner = Runner(
                runner_id=told.runner_id or f"runner_{secrets.token_hex(5)}",
                secret=secrets.token_hex(16),
                told=told,
                last_heartbeat=self._now(),
            )
            self._runners[runner.runner_id] = runner
            answer["heartbeat_secret"] = runner.secret
        elif self._expired(runner):
            # Until it is swept away not even the -orchSecret brings its id back.
            raise RunnerError(404, "runner not found")
        elif not _same(authorization, runner.secret):
            raise RunnerError(401, "invalid heartbeat authorization")
        runner.told, runner.last_heartbeat = told, self._now()
        return {**answer, "runner_id": runner.runner_id, "session_ids": sorted(runner.sessions)}

    def unregister(self, runner_id: str, *, authorization: str) -> None:
        """Forgets a runner.

        Raises:
            RunnerError: 401, 404.
        """
        runner = self._find(runner_id)
        if not _same(authorization, runner.secret):
            raise RunnerError(401, "invalid authorization")
        del self._runners[runner_id]

    def forget_all(self) -> None:
        """As a restart does."""
        self._runners.clear()

    def discovery(self, *, orchestrator: str) -> list[dict[str, Any]]:
        """Returns the runners that are ready."""
        return [
            {
                "url": f"{orchestrator}/apps/{runner.runner_id}/app",
                "app": runner.told.app,
                "mode": "single-shot",
                **{
                    name: said
                    for name in ("version", "metadata", "gpu")
                    if (said := getattr(runner.told, name))
                },
                "capacity": runner.capacity,
                "capacity_used": len(runner.sessions),
                # Below 0 where it was lowered while they ran.
                "capacity_available": runner.capacity - len(runner.sessions),
            }
            for runner in self._runners.values()
            if not self._expired(runner) and runner.told.status in READY
        ]

    @contextmanager
    def session(self, runner_id: str) -> Iterator[tuple[str, dict[str, str]]]:
        """Holds one session, for one request.

        Yields:
            the runner's url and the headers that it is to see.

        Raises:
            RunnerError: 404, 503.
        """
        runner = self._find(runner_id)
        if runner.told.status not in READY:
            raise RunnerError(404, "runner not found")
        if len(runner.sessions) >= runner.capacity:
            raise RunnerError(503, "no capacity available for runner")
        session_id = f"session_{secrets.token_hex(5)}"
        runner.sessions.add(session_id)
        try:
            yield (
                runner.told.runner_url,
                {
                    "Livepeer-Runner-Route": runner_id,
                    "Livepeer-Session-Id": session_id,
                    "Livepeer-Session-Token": secrets.token_hex(16),
                },
            )
        finally:
            runner.sessions.discard(session_id)

    def _find(self, runner_id: str) -> Runner:
        runner = self._runners.get(runner_id)
        if runner is None or self._expired(runner):
            raise RunnerError(404, "runner not found")
        return runner

    def _sweep(self) -> None:
        """Removes who had expired when the last interval ended."""
        now = self._now()
        swept = now - (now - self._began) % self._interval_s
        for runner_id, runner in list(self._runners.items()):
            if swept - runner.last_heartbeat > self._ttl_s:
                del self._runners[runner_id]

    def _expired(self, runner: Runner) -> bool:
        return self._now() - runner.last_heartbeat > self._ttl_s


def _same(given: str, secret: str) -> bool:
    return compare_digest(given.encode(), secret.encode())


def _duration(seconds: float) -> str:
    """As Go prints one."""
    return f"{seconds:g}s" if seconds >= 1 else f"{seconds * 1000:g}ms"
