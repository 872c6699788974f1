"""Runs requests on an external container: an ai-runner, or whatever speaks its HTTP API.

    external_request.py   a request as the Go worker puts it
    external_result.py    answers as our results
    external_probe.py     what the container tells of itself
    external_health.py    whether to give it jobs

What comes back decides whose fault it was:

- the words of a runner for a bad request or a failed model are passed on, under its own status;
- a connection that fails, and what is no runner's answer, are `ReplicaLost`: the job may be done
  elsewhere, and the container's health hears of it;
- 429 and 503 are `ReplicaLost` as well, and nobody's fault: it is busy.

It is somebody else's program: every read has a bound, and every wait ends with the job's deadline.
What the log is told names its address, what the orchestrator is told does not; the token is in
neither, even where the container repeats it.
"""

import asyncio
import json
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus

import aiohttp
from aiohttp.http_exceptions import LineTooLong
from pydantic import ValidationError

from cluster.ai_models import AIModel, ModelKey
from cluster.backends.external_health import INTERVAL_S, REST_S, START_S, Health
from cluster.backends.external_probe import Probe
from cluster.backends.external_request import body_of
from cluster.backends.external_result import MAX_ANSWER_BYTES, read_chunks, read_result
from cluster.bounded_read import bounded_read
from cluster.errors import (
    ContainerRefused,
    DeadlinePassed,
    JobError,
    JobFailed,
    JobRejected,
    ReplicaLost,
    ReportedError,
)
from deployments.schemas.base import Chunk, Completed, Request, Result, explain

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0

MAX_ERROR_BYTES = 64 * 1024
"""Of an error's body."""

MAX_LINE_BYTES = 64 * 1024
"""Of an event stream; where Go's scanner gives up."""

MAX_GAP_BYTES = 1024 * 1024
"""Of an event stream between two tokens. A stream of something else would keep this process busy
until the deadline."""

REFUSALS = (
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
)
"""Beside 400 and 500, what the reference's worker expects and passes on (ai/worker/worker.go)."""

BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)

ANOTHER_MODEL = re.compile("pipeline .*configured with .* but called with ")
"""How ai-runner and our own HTTP API begin their 400 to a job for a model that they do not serve:
the entry's mistake, and not the caller's."""

BROKEN = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)
"""What is raised when a connection ends before the answer does."""


class ExternalBackend:
    """One container, which serves one model."""

    def __init__(
        self,
        model: AIModel,
        *,
        http: aiohttp.ClientSession,
        start_s: float = START_S,
        interval_s: float = INTERVAL_S,
        rest_s: float = REST_S,
    ) -> None:
        """Takes an entry with a url; `health.watch` has to run before there are slots.

        Args:
            model: the entry.
            http: an open session that keeps no connections. Servers close idle ones when they
                like, which would look like the death of the container under a job.
            start_s: as for `Health`.
            interval_s: as for `Health`.
            rest_s: as for `Health`.
        """
        if model.url is None:
            raise ValueError(f"{model.key} has no url")
        self.model = model
        """May be replaced by an entry of the same key, url and token."""
        self._url = model.url
        self._token = model.token.get_secret_value() if model.token else ""
        self._headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        self._http = http
        self._life = 0
        """Of the container, as far as its jobs tell: a death ends one."""
        probe = Probe(http=http, key=model.key, url=self._url, headers=self._headers)
        self.health = Health(
            name=f"{model.key} at {self._url}",
            check=probe.check,
            read_facts=probe.facts,
            start_s=start_s,
            interval_s=interval_s,
            rest_s=rest_s,
        )

    def slots(self) -> int:
        """Jobs at a time; none while it is not ready."""
        return self.model.capacity if self.health.ready else 0

    async def run(self, key: ModelKey, request: Request, *, timeout_s: float) -> Completed[Result]:
        """Runs one request; see `Backend.run`."""
        clock = asyncio.get_running_loop().time
        started = clock()
        with self._sorted(), self.health.job():
            async with self._post(key, request, timeout_s=timeout_s) as response:
                body = await bounded_read(response, MAX_ANSWER_BYTES)
            if body is None:
                # Not the container's fault: the masks of a large image are as long as that.
                raise JobFailed(f"the answer is larger than {MAX_ANSWER_BYTES} bytes")
            compute_s = clock() - started
            result = await asyncio.to_thread(read_result, key.pipeline, request, body)
        self.health.answered()
        return Completed(result=result, replica=self._url, compute_s=compute_s)

    async def stream(
        self, key: ModelKey, request: Request, *, timeout_s: float
    ) -> AsyncGenerator[Chunk, None]:
        """Streams one answer; see `Backend.stream`."""
        clock = asyncio.get_running_loop().time
        started = clock()
        gap_bytes = 0
        with self._sorted(), self.health.job():
            async with self._post(key, request, timeout_s=timeout_s) as response:
                if response.content_type != "text/event-stream":
                    raise ValueError(f"a stream is not of the type {response.content_type!r}")
                while line := await response.content.readline(max_line_length=MAX_LINE_BYTES):
                    gap_bytes += len(line)
                    if gap_bytes > MAX_GAP_BYTES:
                        raise ValueError(f"a stream has no token in {MAX_GAP_BYTES} bytes")
                    name, _, data = line.partition(b":")
                    if name != b"data":
                        continue
                    if data.strip() == b"[DONE]":
                        break
                    for chunk in read_chunks(data, replica=self._url, compute_s=clock() - started):
                        gap_bytes = 0
                        yield chunk
                        if chunk.finishes:
                            self.health.answered()
                            return

    @asynccontextmanager
    async def _post(
        self, key: ModelKey, request: Request, *, timeout_s: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Sends the request; the answer's body is still to be read.

        Raises:
            JobError: it is an error.
        """
        if timeout_s <= 0:  # which would be no limit to aiohttp
            raise TimeoutError
        body = body_of(key, request)
        async with self._http.post(
            f"{self._url}/{key.pipeline}",
            data=body.chunks(),
            headers={
                **self._headers,
                "Content-Type": body.content_type,
                "Content-Length": str(body.length_bytes),
            },
            timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S),
            allow_redirects=False,
        ) as response:
            if response.status != HTTPStatus.OK:
                raise self._refused(
                    response.status, await bounded_read(response, MAX_ERROR_BYTES) or b""
                )
            yield response

    def _refused(self, status: int, body: bytes | bytearray) -> JobError:
        words = self._quoted(_words(body)) or "it does not say why"
        if status == HTTPStatus.BAD_REQUEST and not ANOTHER_MODEL.match(words):
            self.health.answered()
            return JobRejected(words)
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            self.health.answered()
            return JobFailed(words)
        if status in REFUSALS:
            self.health.answered()
            return ContainerRefused(words, http_status=status)
        if status not in BUSY:
            self.health.misfit(f"it answers jobs with {status}: {words[:200]}")
        return ReplicaLost(f"the container of {self.model.key} returned {status}: {words}")

    @contextmanager
    def _sorted(self) -> Iterator[None]:
        """Sorts failures by what should happen to the job, and tells the container's health.

        Raises:
            JobError: in place of everything else.
        """
        life = self._life
        try:
            yield
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self.health.unreachable(f"it cannot be reached: {error}")
            raise ReplicaLost(f"the container of {self.model.key} cannot be reached") from error
        except TimeoutError:
            raise DeadlinePassed("the container did not answer in time") from None
        except BROKEN as error:
            self.health.unreachable(f"a job's connection broke: {error or type(error).__name__}")
            # Jobs that were there together saw one death. One that began later saw another.
            self._life = max(self._life, life + 1)
            raise ReplicaLost(
                f"the connection to the container of {self.model.key} broke during the job",
                dead=f"{self._url} {life}",
            ) from error
        except ReportedError as error:
            raise JobFailed(self._quoted(str(error))) from None
        except (aiohttp.ClientError, LineTooLong, ValueError) as error:
            why = self._quoted(_reason(error))[:200]
            self.health.misfit(f"it answers jobs with what is no answer: {why}")
            raise ReplicaLost(f"the container of {self.model.key} gave no answer: {why}") from error

    def _quoted(self, words: str) -> str:
        """The container's words as a log can hold them, on one line and without the token."""
        line = "".join(filter(str.isprintable, " ".join(words.split())))
        return line.replace(self._token, "(token)") if self._token else line


def _words(body: bytes | bytearray) -> str:
    """Why a runner refused, out of `{"detail":{"msg":...}}`; any other body as it is."""
    text = body.decode("utf-8", "replace")
    try:
        said = json.loads(text)["detail"]["msg"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return text
    return said if isinstance(said, str) else text


def _reason(error: Exception) -> str:
    """What is wrong with an answer, without the address, which aiohttp's texts hold."""
    if isinstance(error, ValidationError):
        return explain(error)
    if isinstance(error, aiohttp.ClientResponseError):
        return error.message
    return type(error).__name__ if isinstance(error, aiohttp.ClientError) else str(error)
