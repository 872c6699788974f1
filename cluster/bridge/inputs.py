"""The file that a job works on, fetched from where the orchestrator says.

Bounded in size and time, from http and https only. The orchestrator's own store answers with
the certificate that the job came with; any other host (an object store) must have an ordinary
one. Redirects are not followed: an orchestrator has no reason to send any, and following one
would let a url reach what only this machine can.
"""

import ssl
from http import HTTPStatus
from urllib.parse import urlsplit

import aiohttp

from cluster.bridge.job import Job
from cluster.errors import JobFailed, JobRejected

MAX_INPUT_BYTES = 300_000_000
"""go-livepeer's limit (core/ai_worker.go, via common.ReadAtMost)."""

CONNECT_TIMEOUT_S = 10.0
STALL_TIMEOUT_S = 30.0
"""Without a byte. The job's own deadline bounds the whole."""


class Inputs:
    """Fetches input files. An async context manager: connections are kept between jobs."""

    def __init__(self, *, max_bytes: int = MAX_INPUT_BYTES) -> None:
        """Takes the bound on a file's size."""
        self._max_bytes = max_bytes
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

    async def fetch(self, job: Job, url: str) -> bytes:
        """Returns the file.

        Raises:
            JobRejected: no http(s) url, or a file that is too large.
            JobFailed: it could not be had.
        """
        if self._http is None:
            raise RuntimeError("Inputs is used as an async context manager")
        if urlsplit(url).scheme not in ("http", "https"):
            raise JobRejected(f"input_url: want an http or https url, got {url[:100]!r}")
        try:
            async with self._http.get(url, ssl=_trust(job, url), allow_redirects=False) as response:
                if response.status != HTTPStatus.OK:
                    raise JobFailed(f"the input file answered {response.status}")
                return await self._read(response)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise JobFailed(
                f"the input file could not be fetched: {type(error).__name__}"
            ) from error

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        data = bytearray()
        async for chunk in response.content.iter_any():
            data += chunk
            if len(data) > self._max_bytes:
                raise JobRejected(f"the input file is larger than {self._max_bytes} bytes")
        return bytes(data)


def _trust(job: Job, url: str) -> ssl.SSLContext | bool:
    """The job's own certificate for its orchestrator, the ordinary authorities for others."""
    parts = urlsplit(url)
    address = job.peer.address
    same = (parts.hostname, parts.port or 443) == (address.host, address.port)
    return job.peer.tls if same and job.peer.tls else True
