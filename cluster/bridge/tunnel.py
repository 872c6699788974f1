"""A TCP connection that gRPC goes through, so that it can be closed in one direction only.

A registration has to be left without losing the job that the orchestrator sends in that very
moment. Cancelling the call loses it: gRPC throws away what is still on its way, and the
orchestrator, which counts it as sent, waits 15 minutes for the answer. TCP has the half-close
for this: we say that we are done, and read on until the other side has closed too. Go's HTTP/2
server takes the end of our side for the end of the connection (golang.org/x/net,
http2/server.go `processFrameFromReader`, which names this very case); all that it had written
arrives, and whatever the orchestrator would send later fails and is given to the next worker
(go-livepeer, core/ai_orchestrator.go `Process`). Of what lies in between, see `Stream.leave`.
gRPC has no half-close, hence this module.

The bytes are not looked at; with TLS they are ciphertext.
"""

import asyncio
import contextlib
import shutil
import socket
import tempfile
from pathlib import Path

from cluster.bridge.address import Address
from cluster.bridge.peer import CONNECT_TIMEOUT_S
from cluster.errors import OrchestratorUnreachable

READ_BYTES = 64 * 1024


class Tunnel:
    """One connection to an orchestrator and the socket at which gRPC finds it."""

    def __init__(self, *, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Takes the connection; `open_tunnel` makes it."""
        self._reader = reader
        self._writer = writer
        # A directory of our own, which nobody else may enter.
        self._folder = tempfile.mkdtemp(prefix="livepeer-ray-")
        self._server: asyncio.Server | None = None
        self._pump: asyncio.Task[None] | None = None
        self._left = False
        self.ended = asyncio.Event()
        """Set when the orchestrator has closed its side and all that it sent was passed on."""

    @property
    def target(self) -> str:
        """Where gRPC connects to, once."""
        return f"unix:{self._socket}"

    @property
    def _socket(self) -> Path:
        return Path(self._folder, "orchestrator")

    async def listen(self) -> None:
        """Takes gRPC's connection when it comes."""
        self._server = await asyncio.start_unix_server(self._accept, self._socket)

    def leave(self) -> None:
        """Closes our side; what the orchestrator sends until it notices still arrives."""
        self._left = True
        # It may have closed its own side meanwhile.
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.write_eof()

    async def close(self) -> None:
        """Closes both sides."""
        if self._server is not None:
            self._server.close()
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        self._writer.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connects gRPC's connection with the orchestrator's; there is no second one."""
        if self._pump is not None:
            writer.close()
            return
        self._pump = asyncio.create_task(self._run(reader, writer))

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Passes bytes on until either side ends; after `leave` until `close`."""
        try:
            async with asyncio.TaskGroup() as pumps:
                up = pumps.create_task(self._up(reader))
                await self._down(writer)
                self.ended.set()
                if self._left:
                    # gRPC drops what it has not handed out yet when its connection ends.
                    await asyncio.Event().wait()
                up.cancel()
        finally:
            self.ended.set()
            writer.close()

    async def _up(self, reader: asyncio.StreamReader) -> None:
        """From gRPC to the orchestrator."""
        with contextlib.suppress(OSError):
            while data := await reader.read(READ_BYTES):
                if not self._left:
                    self._writer.write(data)
                    await self._writer.drain()
        if not self._left:
            self._writer.close()

    async def _down(self, writer: asyncio.StreamWriter) -> None:
        """From the orchestrator to gRPC."""
        with contextlib.suppress(OSError):
            while data := await self._reader.read(READ_BYTES):
                writer.write(data)
                await writer.drain()


async def open_tunnel(address: Address) -> Tunnel:
    """Connects to an orchestrator.

    Raises:
        OrchestratorUnreachable: it does not accept the connection.
    """
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(address.host, address.port)
    except TimeoutError:
        raise OrchestratorUnreachable(f"{address} does not answer") from None
    except socket.gaierror as error:
        raise OrchestratorUnreachable(f"{address}: no such host ({error.strerror})") from error
    except OSError as error:
        raise OrchestratorUnreachable(f"{address}: {error.strerror or error}") from error
    try:
        tunnel = Tunnel(reader=reader, writer=writer)
    except OSError as error:
        writer.close()
        raise _no_socket(error) from error
    try:
        await tunnel.listen()
    except OSError as error:
        await tunnel.close()
        raise _no_socket(error) from error
    except BaseException:
        await tunnel.close()
        raise
    return tunnel


def _no_socket(error: OSError) -> OrchestratorUnreachable:
    """A disk that is full, say: a reason to try again, and not to end."""
    return OrchestratorUnreachable(
        f"no socket for gRPC can be made in {tempfile.gettempdir()} ({error.strerror or error}): "
        "make room there, or set TMPDIR to another directory with a short name"
    )
