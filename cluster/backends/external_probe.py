"""What a container tells of itself: `GET /health`, `/version` and `/hardware/info`.

Shapes: ai-runner, runner/src/runner/routes/. Each answer has a bound in size and time. What the
second and third say goes into the registration, so it is bounded by what its message can hold.
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

import aiohttp
from pydantic import AfterValidator, BaseModel, Field, ValidationError

from cluster.ai_models import ModelKey
from cluster.backends.external_health import Facts
from cluster.bounded_read import bounded_read
from cluster.errors import NoAnswer, NotHealthy
from deployments.hardware import GPU
from deployments.schemas.base import explain

logger = logging.getLogger(__name__)

TIMEOUT_S = 5.0
"""For each answer, as go-livepeer's worker has it."""

MAX_BYTES = 64 * 1024

NOT_READY = {
    "LOADING": "it is loading its model",
    "ERROR": "it reports that its model has failed",
}
"""By status in /health. Every other one means ready (go-livepeer, ai/worker/container.go)."""

Word = Annotated[
    str,
    Field(max_length=200),
    # It is shown in logs and terminals.
    AfterValidator(lambda value: "".join(filter(str.isprintable, value))),
]
Small = Annotated[int, Field(ge=0, lt=2**31)]
Bytes = Annotated[int, Field(ge=0, lt=2**63)]


class _GPU(BaseModel):
    id: Word
    name: Word
    major: Small
    minor: Small
    memory_free: Bytes
    memory_total: Bytes


class _Hardware(BaseModel):
    gpu_info: Annotated[dict[str, _GPU], Field(max_length=64)]


class _Version(BaseModel):
    pipeline: str
    model_id: str
    version: Word


ToldT = TypeVar("ToldT", bound=BaseModel)


class Probe:
    """Asks one container."""

    def __init__(
        self, *, http: aiohttp.ClientSession, key: ModelKey, url: str, headers: Mapping[str, str]
    ) -> None:
        """Takes where to ask.

        Args:
            http: an open session.
            key: the model that should be there.
            url: of the container, without a final slash.
            headers: with the token, if it wants one.
        """
        self._http = http
        self._key = key
        self._url = url
        self._headers = headers

    async def check(self) -> None:
        """Returns for a healthy container.

        Raises:
            NoAnswer: there was none in time.
            NotHealthy: otherwise, with the reason.
        """
        health = await self._get("/health")
        if not isinstance(health, dict):
            raise NotHealthy("what answers /health is no runner")
        if why := NOT_READY.get(str(health.get("status"))):
            raise NotHealthy(why)

    async def facts(self) -> Facts:
        """Returns what the container tells; what it does not is logged and left out."""
        version = await self._told("/version", _Version)
        hardware = await self._told("/hardware/info", _Hardware)
        if version and (version.pipeline, version.model_id) != self._key:
            logger.warning(
                "%s says that it serves %.100r %.100r; the aiModels.json says %s",
                self._url,
                version.pipeline,
                version.model_id,
                self._key,
            )
        gpus = hardware.gpu_info.values() if hardware else ()
        return Facts(
            version=version.version if version else "",
            gpus=tuple(
                GPU(
                    id=gpu.id,
                    name=gpu.name,
                    major=gpu.major,
                    minor=gpu.minor,
                    memory_free_bytes=gpu.memory_free,
                    memory_total_bytes=gpu.memory_total,
                )
                for gpu in gpus
            ),
        )

    async def _told(self, path: str, kind: type[ToldT]) -> ToldT | None:
        try:
            return kind.model_validate(await self._get(path))
        except ValidationError as error:
            why = explain(error)
        except NotHealthy as error:
            why = str(error)
        logger.warning("%s does not answer %s: %s", self._url, path, why)
        return None

    async def _get(self, path: str) -> Any:
        """Returns a JSON document.

        Raises:
            NotHealthy: there is none.
        """
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                self._http.get(
                    self._url + path, headers=self._headers, allow_redirects=False
                ) as response,
            ):
                if response.status != HTTPStatus.OK:
                    raise NotHealthy(f"{path} answers {response.status}")
                body = await bounded_read(response, MAX_BYTES)
        except TimeoutError:
            raise NoAnswer(f"{path} does not answer within {TIMEOUT_S:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            why = " ".join(str(error).split()) or type(error).__name__
            raise NotHealthy(f"{path}: {why}") from error
        if body is None:
            raise NotHealthy(f"{path} answers more than {MAX_BYTES} bytes")
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise NotHealthy(f"{path} answers what is not JSON") from None
