"""The file that a job works on, fetched from where the orchestrator says.

Bounded in size, by the pipeline, and in time; from http and https only. Redirects are not
followed: an orchestrator has no reason to send any, and following one would let a url reach what
only this machine can.

The orchestrator's own store is at its service URI (go-livepeer, cmd/livepeer/starter/starter.go),
which need not be where we found it: that may be an address of the local network. It answers with
the certificate that the job came with, or with an ordinary one where a proxy stands before it.
Any other host (an object store) must have an ordinary one.
"""

import ssl
from contextlib import suppress
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
            if own := _own_certificate(job, url):
                # A server that has another one was asked for nothing yet.
                with suppress(aiohttp.ClientConnectorCertificateError):
                    return await _get(self._http, work, trust=own)
            return await _get(self._http, work, trust=True)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise JobFailed(
                f"the input file could not be fetched: {type(error).__name__}"
            ) from error


async def _get(http: aiohttp.ClientSession, work: Work, *, trust: ssl.SSLContext | bool) -> bytes:
    """Returns the file; of a server with such a certificate. True is any ordinary one."""
    async with http.get(work.input_url, ssl=trust, allow_redirects=False) as response:
        if response.status != HTTPStatus.OK:
            raise JobFailed(f"the input file answered {response.status}")
        return await _read(response, work.pipeline)


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


def _own_certificate(job: Job, url: str) -> ssl.SSLContext | None:
    """What trusts the job's orchestrator alone, where the url is one of its names.

    Its certificate names the host of the service URI (server/cert.go). One that names somebody
    else's host gains nothing by it: only who has its key is trusted there, and the orchestrator
    could give us any file as it is.
    """
    own = urlsplit(url).hostname in (job.peer.address.host, job.peer.name.lower())
    return job.peer.tls if own else None
