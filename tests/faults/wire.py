"""A TCP forwarder as a process: `python -m tests.faults.wire HOST:PORT TARGET_HOST:PORT`.

Killing it is what the end of a network connection looks like at both of its ends.
"""

import asyncio
import contextlib
import sys

READ_BYTES = 64 * 1024


async def main(listen: str, target: str) -> None:
    """Forwards for ever."""
    host, port = listen.split(":")
    target_host, target_port = target.split(":")
    connections: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # asyncio's own reference to a connection ends with its transport.
        connection = asyncio.create_task(forward(reader, writer))
        connections.add(connection)
        connection.add_done_callback(connections.discard)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection(target_host, int(target_port))
        except OSError:
            writer.transport.abort()
            return
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_pass_on(reader, there[1]))
                both.create_task(_pass_on(there[0], writer))
        except* OSError:
            for side in (writer, there[1]):
                side.transport.abort()
        finally:
            for side in (writer, there[1]):
                side.close()

    server = await asyncio.start_server(accept, host, int(port))
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 (the port, for who started it)
    await server.serve_forever()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction, to its end; the other one may go on."""
    while data := await reader.read(READ_BYTES):
        writer.write(data)
        await writer.drain()
    # The other side may have closed meanwhile.
    with contextlib.suppress(RuntimeError):
        writer.write_eof()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
