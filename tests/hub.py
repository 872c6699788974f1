"""A Hugging Face hub on this machine, for what its client asks when it downloads.

Routes and headers are those that huggingface_hub 2.4 uses (hf_api.py, file_download.py), over
plain HTTP.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """The server and what is steered and recorded of it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        """By id; data sets as `datasets/org/name`."""
        self.gated: set[str] = set()
        """Repositories that need a token."""
        self.cut_after: int | None = None
        """Bytes of a file after which the connection breaks, once."""
        self.sent: list[tuple[str, int]] = []
        """Every file that was sent, with the byte at which it began."""
        self.tokens: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, repository: str, files: dict[str, bytes]) -> None:
        """Adds files to a repository, or changes them."""
        self.repositories.setdefault(repository, {}).update(files)

    def commit(self, repository: str) -> str:
        files = self.repositories[repository]
        return _etag("".join(name + _etag(files[name]) for name in sorted(files)).encode())

    @property
    def names(self) -> list[str]:
        """The files that were sent."""
        return [name for name, _ in self.sent]


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _answer(self, *, with_body: bool) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.split("/")[1:]]
        about = parts[0] == "api"
        if about:
            parts = parts[2:] if parts[1] == "models" else parts[1:]
        length = 3 if parts[0] == "datasets" else 2
        repository = "/".join(parts[:length])
        file = None if about else "/".join(parts[length + 2 :])
        files = self.server.repositories.get(repository, {})
        authorization = self.headers.get("Authorization", "")
        if authorization:
            self.server.tokens.add(authorization.removeprefix("Bearer "))
        if not files:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, with_body)
        elif repository in self.server.gated and not authorization:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"}, with_body)
        elif file is None and "tree" in parts:
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                for name, data in files.items()
            ]
            self._send(200, json.dumps(tree).encode(), {}, with_body)
        elif file is None:
            document = {
                "id": repository,
                "sha": self.server.commit(repository),
                "siblings": [
                    {"rfilename": name, "size": len(data)} for name, data in files.items()
                ],
            }
            self._send(200, json.dumps(document).encode(), {}, with_body)
        elif file not in files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)
        else:
            self._file(repository, file, files[file], with_body=with_body)

    def _file(self, repository: str, file: str, data: bytes, *, with_body: bool) -> None:
        headers = {"X-Repo-Commit": self.server.commit(repository), "ETag": f'"{_etag(data)}"'}
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if with_body:
            self.server.sent.append((file, start))
        self._send(206 if start else 200, data[start:], headers, with_body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        cut = self.server.cut_after
        if with_body and cut is not None and len(data) > cut:
            self.server.cut_after = None
            self.wfile.write(data[:cut])
            self.wfile.flush()
            self.close_connection = True
        elif with_body:
            self.wfile.write(data)


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()  # noqa: S324 - an ETag


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub without repositories."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
