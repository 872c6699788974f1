"""The files that `GET /stream/<request>/<name>` serves: inputs to workers, results to callers."""

import secrets
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

MAX_STORED_BYTES = 512_000_000
"""Beyond this the results of the oldest requests are forgotten; the real store keeps 10 minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file and what it is."""

    data: bytes
    media_type: str


class Store:
    """Keeps files in memory, by request and name."""

    def __init__(self) -> None:
        """Starts empty."""
        self._inputs: dict[str, StoredFile] = {}
        self._results: OrderedDict[str, StoredFile] = OrderedDict()
        self._result_bytes = 0

    def get(self, path: str) -> StoredFile | None:
        """Returns the file at `<request>/<name>`."""
        return self._inputs.get(path) or self._results.get(path)

    @contextmanager
    def lend(self, data: bytes) -> Iterator[str]:
        """Keeps an input as long as the context lasts, whatever else is stored; yields its path."""
        # A name like the real one's (go-livepeer, core/ai_orchestrator.go, SaveAIRequestInput).
        path = f"{secrets.token_hex(4)}/{secrets.token_hex(4)}.tempfile"
        self._inputs[path] = StoredFile(data=data, media_type="application/octet-stream")
        try:
            yield path
        finally:
            del self._inputs[path]

    def keep(self, files: Mapping[str, bytes], media_type: str) -> str:
        """Keeps a request's results; returns what their paths start with."""
        request = secrets.token_hex(4)
        for name, data in files.items():
            self._results[f"{request}/{name}"] = StoredFile(data=data, media_type=media_type)
            self._result_bytes += len(data)
        while self._result_bytes > MAX_STORED_BYTES and len(self._results) > len(files):
            _, oldest = self._results.popitem(last=False)
            self._result_bytes -= len(oldest.data)
        return request
