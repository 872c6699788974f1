"""hypercorn's HTTP/1.1 and HTTP/2 under an accept loop of our own.

`hypercorn.asyncio.serve` ends its connections politely: where a client does not answer the
closing of TLS it waits for half a minute. A gRPC client that dropped its channel is such a
client, and tests stop an orchestrator after each of them.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import cast

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.typing import ASGIFramework

from cluster.loopback.asgi import Message, Receive, Send, format_peer

App = Callable[[Message, Receive, Send], Awaitable[None]]

_log = logging.getLogger(__name__)

_IDLE_S = 600.0
"""Go's HTTPIdleTimeout: a connection that closes sooner could surprise a worker that reuses it."""

_FRAME_HEAD_BYTES, _DATA_FRAME = 9, 0

_GOODBYE_S = 0.25
"""How long a client may take to close its side when the server stops."""


class Reader(asyncio.StreamReader):
    """A reader that knows of the connection's end before what came before it is read."""

    ended = False

    def feed_eof(self) -> None:
        """Called by asyncio, which writes nothing over TLS from now on and tells nobody."""
        self.ended = True
        super().feed_eof()


class Connection:
    """A connection's writer for hypercorn, which tells when something was really written.

    hypercorn takes what it is to send and writes it a moment later, be the peer there or not.
    """

    def __init__(self, reader: Reader, writer: asyncio.StreamWriter) -> None:
        """Takes the writer that does the work, and the reader of the other direction."""
        self._reader = reader
        self._writer = writer
        self._next_data: asyncio.Future[None] | None = None
        self.drain = writer.drain
        self.write_eof = writer.write_eof
        self.close = writer.close
        self.wait_closed = writer.wait_closed
        self.get_extra_info = writer.get_extra_info
        self.peer: str = format_peer(*(writer.get_extra_info("peername") or ("", 0))[:2])

    def cut(self) -> None:
        """Ends the connection, at once and without a word."""
        # Not transport.abort(), which does nothing once a TLS transport was closed twice.
        with suppress(OSError):
            self.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    def next_data(self) -> asyncio.Future[None]:
        """Done as soon as HTTP/2 data is written while the connection lives."""
        if self._next_data is None:
            self._next_data = asyncio.get_running_loop().create_future()
        return self._next_data

    def write(self, data: bytes) -> None:
        """Writes."""
        lives = not (self._reader.ended or self._writer.transport.is_closing())
        if self._next_data is not None and lives and _has_data_frame(data):
            self._next_data.set_result(None)
            self._next_data = None
        self._writer.write(data)


def _has_data_frame(frames: bytes) -> bool:
    """Tells a message from acknowledgements; hypercorn writes whole frames (RFC 9113, 4.1)."""
    start = 0
    while start < len(frames):
        if frames[start + 3] == _DATA_FRAME:
            return True
        start += _FRAME_HEAD_BYTES + int.from_bytes(frames[start : start + 3])
    return False


class TLSServer:
    """Serves one ASGI application on one listening socket."""

    def __init__(self, app: App) -> None:
        """Takes the application; it gets no lifespan messages."""
        self._app = ASGIWrapper(cast("ASGIFramework", app))
        self._context = WorkerContext(None)
        self._connections: dict[asyncio.Task[None], Connection] = {}
        self._server: asyncio.Server | None = None
        self._config = Config()
        self._config.accesslog = None
        self._config.errorlog = _log
        self._config.keep_alive_timeout = _IDLE_S
        # Closing a connection after some number of requests would only look like a fault.
        self._config.keep_alive_max_requests = 2**31

    async def start(self, listener: socket.socket, tls: ssl.SSLContext) -> None:
        """Begins to accept connections; the socket is closed by `stop`."""
        self._server = await asyncio.get_running_loop().create_server(
            lambda: asyncio.StreamReaderProtocol(Reader(), self._serve), sock=listener, ssl=tls
        )

    def connection(self, peer: str) -> Connection | None:
        """Returns the connection of a peer, None where it has gone."""
        return next((one for one in self._connections.values() if one.peer == peer), None)

    def stop_accepting(self) -> None:
        """Closes the port; the connections live on."""
        if self._server is not None:
            self._server.close()

    async def stop(self) -> None:
        """Closes every connection, first politely, then not."""
        self.stop_accepting()
        await self._context.terminated.set()
        if self._connections:
            await asyncio.wait(self._connections, timeout=_GOODBYE_S)
        for connection in self._connections.values():
            connection.cut()
        await asyncio.gather(*self._connections)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        connection = self._connections[task] = Connection(cast("Reader", reader), writer)
        loop = asyncio.get_running_loop()
        try:
            await TCPServer(
                self._app,
                loop,
                self._config,
                self._context,
                {},
                reader,
                cast("asyncio.StreamWriter", connection),
            )
        except OSError as error:
            _log.debug("a connection was lost: %s", error)
        finally:
            del self._connections[task]
