"""The file that a job works on, fetched from where the orchestrator says.

Bounded in size, by the pipeline, and in time; from http and https only. The orchestrator's own
store answers with the certificate that the job came with; any other host (an object store) must
have an ordinary one. Redirects are not followed: an orchestrator has no reason to send any, and
following one would let a url reach what only this machine can.
"""

import ssl
from http import HTTPStatus
from urllib.parse import urlsplit

import aiohttp

from cluster.bounded_read import bounded_read
from cluster.bridge.job import Job, Work
from cluster.errors import JobFailed, JobRejected
from deployments.registry import Pipeline

CONNECT_TIMEOUT_S = 10.0
STALL_TIMEOUT_S = 30.0
"""Without a byte. The job's own deadline bounds the whole."""


class Inputs:
    """Fetches input files. An async context manager: connections are kept between jobs."""

    def __init__(self) -> None:
        """Opens no connection yet."""
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Inputs":
        """Opens the connection pool."""
        self._http = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=STALL_TIMEOUT_S
            ),
            connector=aiohttp.TCPConnector(limit=0),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes the connections."""
        if self._http is not None:
            await self._http.close()

    async def fetch(self, job: Job, work: Work) -> bytes:
        """Returns the file at `work.input_url`.

        Raises:
            JobRejected: no http(s) url, or a file that is too large.
            JobFailed: it could not be had.
        """
        if self._http is None:
            raise RuntimeError("Inputs is used as an async context manager")
        url = work.input_url
        if not _is_http(url):
            raise JobRejected(f"input_url: want an http or https url, got {url[:100]!r}")
        try:
            async with self._http.get(url, ssl=_trust(job, url), allow_redirects=False) as response:
                if response.status != HTTPStatus.OK:
                    raise JobFailed(f"the input file answered {response.status}")
                return await _read(response, work.pipeline)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise JobFailed(
                f"the input file could not be fetched: {type(error).__name__}"
            ) from error


async def _read(response: aiohttp.ClientResponse, pipeline: Pipeline) -> bytes:
    """Returns the body.

    Raises:
        JobRejected: it is too large.
    """
    data = await bounded_read(response, pipeline.max_file_bytes)
    if data is None:
        raise JobRejected(
            f"{pipeline.file}: the file is larger than the {pipeline.max_file_bytes} bytes "
            f"that {pipeline.name} takes"
        )
    return bytes(data)


def _is_http(url: str) -> bool:
    try:
        return urlsplit(url).scheme in ("http", "https")
    except ValueError:
        return False


def _trust(job: Job, url: str) -> ssl.SSLContext | bool:
    """The job's own certificate for its orchestrator, the ordinary authorities for others."""
    parts = urlsplit(url)
    address = job.peer.address
    same = (parts.hostname, parts.port or 443) == (address.host, address.port)
    return job.peer.tls if same and job.peer.tls else True
