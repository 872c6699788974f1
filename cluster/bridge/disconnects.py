"""Requests end when their client is gone: ASGI servers only say so to who asks."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class CancelledWhenGone:
    """An ASGI application whose requests are cancelled when their client leaves."""

    def __init__(self, app: App) -> None:
        """Takes the application."""
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handles one request, or one lifespan."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        gone, read = asyncio.Event(), asyncio.Event()

        async def body() -> Message:
            """Hands on what comes; after the body there is only the end."""
            if read.is_set():
                await gone.wait()
                return {"type": "http.disconnect"}
            message = await receive()
            if message["type"] == "http.disconnect":
                gone.set()
                read.set()
            elif not message.get("more_body", False):
                read.set()
            return message

        async def watch() -> None:
            await read.wait()
            while not gone.is_set():
                if (await receive())["type"] == "http.disconnect":
                    gone.set()

        handling = asyncio.ensure_future(self._app(scope, body, send))
        watching = asyncio.create_task(watch())
        try:
            await asyncio.wait({handling, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            if not handling.done():
                handling.cancel()
            await asyncio.gather(handling, watching, return_exceptions=True)
        if not handling.cancelled() and (error := handling.exception()):
            raise error
