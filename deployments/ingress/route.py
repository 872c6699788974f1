"""What happens to a request before its body is read: who sends it, how much, and beside whom."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from deployments.ingress.errors import Overloaded, TooLarge
from deployments.ingress.service import Service

MAX_REQUESTS = 256
"""At once, of whatever pipeline: what waits for a slot is refused, so these are running or on
their way in, and each may have a file on disk."""


def guarded_route(service: Service, *, max_body_bytes: int) -> type[APIRoute]:
    """Returns the class of routes that read no more than so much of whom they let in."""

    class GuardedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def guarded(request: Request) -> Response:
                service.guard.admit(request)
                _check_length(request, max_body_bytes)
                if service.under_way >= MAX_REQUESTS:
                    raise Overloaded(f"{MAX_REQUESTS} requests are under way")
                service.under_way += 1
                try:
                    return await handle(
                        Request(request.scope, _bounded(request.receive, max_body_bytes))
                    )
                finally:
                    service.under_way -= 1

            return guarded

    return GuardedRoute


def _check_length(request: Request, max_bytes: int) -> None:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise TooLarge(_too_large(max_bytes))


def _bounded(receive: Receive, max_bytes: int) -> Receive:
    """Bounds a body whose length was not said, or not truly."""
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > max_bytes:
            # FastAPI lets no other exception pass while it reads.
            raise HTTPException(413, _too_large(max_bytes))
        return message

    return bounded


def _too_large(max_bytes: int) -> str:
    return f"the body is larger than {max_bytes} bytes"
