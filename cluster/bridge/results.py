"""Answers: a result or an error in the orchestrator's words, posted to /aiResults.

The orchestrator says 200 to much that it then drops, and a job whose answer it could not read
waits out its 15 minutes (go-livepeer, server/ai_http.go `AIResults`). So an answer is exact to
the byte: part types without parameters, file names equal to the urls, a closing boundary.
"""

import asyncio
import logging
import random
import secrets
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import dataclass
from http import HTTPStatus
from typing import ClassVar

import aiohttp
from pydantic import SecretStr

from cluster.bridge.address import Address
from cluster.bridge.event_stream import Stream
from cluster.bridge.job import Job
from cluster.errors import JobError
from deployments.schemas.base import MediaFile, Result

logger = logging.getLogger(__name__)

CHUNK_BYTES = 256 * 1024
EXTENSIONS = {"image/png": ".png", "video/mp4": ".mp4", "audio/wav": ".wav"}

JOB_LIMIT_S = 14 * 60.0
"""After 15 minutes the orchestrator drops a job and the worker with it; one minute to spare."""

CONNECT_TIMEOUT_S = 10.0
STALL_TIMEOUT_S = 60.0
"""Without progress: a slice taken, or the reply, which comes as soon as all is read. aiohttp's
own timeouts do not watch an upload."""

MAX_REPLY_BYTES = 200
"""Of the orchestrator's words, which are for the log."""

RETRY_FIRST_S, RETRY_MAX_S = 0.25, 10.0

MAX_REFUSALS = 64
"""Errors on their way to one orchestrator. Results are bounded by the slots, refusals of what is
beyond them by nothing else, and each takes a connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The body of one POST, in pieces that are never joined."""

    content_type: str
    pieces: tuple[bytes, ...]
    refuses: bool = False
    """Whether it is an error, so that nothing bounds the number of such answers."""

    begun: ClassVar[bool] = False
    """Never: it can be sent again from its start."""

    @property
    def length_bytes(self) -> int:
        """Sum of the pieces."""
        return sum(map(len, self.pieces))

    async def chunks(self) -> AsyncIterator[memoryview]:
        """The body in slices small enough to leave the event loop to others."""
        for piece in self.pieces:
            view = memoryview(piece)
            for start in range(0, len(view), CHUNK_BYTES):
                yield view[start : start + CHUNK_BYTES]


async def _body(
    answer: Answer | Stream, stall: asyncio.Timeout
) -> AsyncIterator[bytes | memoryview]:
    """What is posted. Its orchestrator has `STALL_TIMEOUT_S` for each piece, and to reply.

    Args:
        answer: its pieces.
        stall: is put off by that, and off between the pieces: that time is the model's.
    """
    clock = asyncio.get_running_loop().time
    async for piece in answer.chunks():
        stall.reschedule(clock() + STALL_TIMEOUT_S)
        yield piece
        stall.reschedule(None)
    stall.reschedule(clock() + STALL_TIMEOUT_S)


def success(result: Result) -> Answer:
    """A result as multipart/mixed: its files untouched, then the document naming them."""
    boundary = secrets.token_hex(16)
    pieces: list[bytes] = []
    names = [_file_name(file) for file in result.files]
    for name, file in zip(names, result.files, strict=True):
        pieces += [
            _part_head(boundary, file.media_type, len(file.data), file_name=name),
            file.data,
            b"\r\n",
        ]
    document = result.document_json(names)
    pieces += [
        _part_head(boundary, "application/json", sum(map(len, document))),
        *document,
        f"\r\n--{boundary}--\r\n".encode(),
    ]
    return Answer(content_type=f"multipart/mixed; boundary={boundary}", pieces=tuple(pieces))


def failure(error: JobError, pipeline: str) -> Answer:
    """An error: the bare text, which decides what gateways do to us."""
    return Answer(
        content_type="livepeer/ai-worker-error",
        pieces=(error.network_text(pipeline).encode(),),
        refuses=True,
    )


def _file_name(file: MediaFile) -> str:
    return secrets.token_hex(4) + EXTENSIONS[file.media_type]


def _part_head(boundary: str, media_type: str, length: int, *, file_name: str = "") -> bytes:
    lines = [f"--{boundary}"]
    if file_name:
        lines.append(f"Content-Disposition: attachment; filename={file_name}")
    lines += [f"Content-Length: {length}", f"Content-Type: {media_type}", "", ""]
    return "\r\n".join(lines).encode()


class Delivery:
    """Posts answers, and tries again while it is safe to.

    An async context manager: connections are kept between answers and closed at the end.
    """

    def __init__(self, *, secret: SecretStr) -> None:
        """Takes the orchestrator's secret."""
        self._secret = secret
        self._http: aiohttp.ClientSession | None = None
        self._refusals: defaultdict[Address, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(MAX_REFUSALS)
        )

    async def __aenter__(self) -> "Delivery":
        """Opens the connection pool."""
        self._http = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            # One connection per answer in flight: slots and MAX_REFUSALS bound them.
            connector=aiohttp.TCPConnector(limit=0),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes the connections."""
        if self._http is not None:
            await self._http.close()

    async def deliver(self, job: Job, answer: Answer | Stream) -> bool:
        """Delivers an answer; returns whether the orchestrator took it.

        A stream is tried again only as long as nothing of it was sent.

        Never raises: why an answer could not be delivered is logged, and there is nobody left
        to tell.
        """
        clock = asyncio.get_running_loop().time
        pause_s = RETRY_FIRST_S
        while True:
            try:
                refuses = isinstance(answer, Answer) and answer.refuses
                async with self._refusals[job.peer.address] if refuses else nullcontext():
                    status, reply = await self._post(job, answer)
            except aiohttp.ClientConnectorCertificateError as error:
                # The connection trusts the certificate that this job came with, and no other.
                logger.warning(
                    "%s: answer dropped, the orchestrator has another certificate now, so it was "
                    "restarted and the job is gone: %s",
                    job,
                    error.certificate_error,
                )
                return False
            except (aiohttp.ClientError, TimeoutError, ssl.SSLError, OSError) as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if status == HTTPStatus.OK:
                    return True
                problem = f"the orchestrator answered {status}: {reply}"
                if status < HTTPStatus.INTERNAL_SERVER_ERROR:
                    logger.error("%s: answer refused: %s", job, problem)
                    return False
            if answer.begun:
                logger.warning("%s: the stream broke off: %s", job, problem)
                return False
            pause_s = min(pause_s * 2, RETRY_MAX_S) * random.uniform(0.75, 1.25)  # noqa: S311 - jitter
            if clock() + pause_s - job.received_at > JOB_LIMIT_S:
                logger.error("%s: not delivered, its time is over: %s", job, problem)
                return False
            logger.warning("%s: not delivered, again in %.1f s: %s", job, pause_s, problem)
            await asyncio.sleep(pause_s)

    async def _post(self, job: Job, answer: Answer | Stream) -> tuple[int, str]:
        if self._http is None:
            raise RuntimeError("Delivery is used as an async context manager")
        headers = {
            "Authorization": "Livepeer-AI-Worker-1.0",
            "Credentials": self._secret.get_secret_value(),
            "TaskId": str(job.task_id),
            "Pipeline": job.pipeline,
            "Content-Type": answer.content_type,
        }
        if answer.length_bytes is not None:
            headers["Content-Length"] = str(answer.length_bytes)
        async with (
            asyncio.timeout(STALL_TIMEOUT_S) as stall,
            self._http.post(
                f"{job.peer.address.url}/aiResults",
                data=_body(answer, stall),
                headers=headers,
                ssl=job.peer.tls or False,
                allow_redirects=False,
            ) as response,
        ):
            # Of a reply that never ends, its beginning will do.
            reply = await response.content.read(MAX_REPLY_BYTES)
            return response.status, reply.decode("utf-8", "replace")
