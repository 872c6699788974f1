"""What the HTTP API refuses, and how errors are told: ai-runner's bodies and statuses."""

import logging
from collections.abc import Mapping
from typing import ClassVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from deployments.errors import LivepeerRayError, ReplicaError

logger = logging.getLogger("ray.serve")

GO_LIVEPEER = "Go-http-client/"
"""How the client that go-livepeer generates from ai-runner's OpenAPI document calls itself. It
takes a status that is not in that document for an empty result, at which the worker's process
ends with a nil pointer (v0.9.1: ai/worker/worker.go returns nil, nil; server/ai_worker.go,
runAIJob)."""

DOCUMENTED = frozenset({200, 400, 401, 422, 500})
"""Statuses of every pipeline there."""

ALSO_DOCUMENTED = {"audio-to-text": frozenset({413, 415}), "image-to-text": frozenset({413})}
"""Statuses of single ones."""


class Refused(LivepeerRayError):
    """A request that did not reach a model."""

    http_status: ClassVar[int]
    headers: ClassVar[Mapping[str, str]] = {}


class WrongModel(Refused):
    """The request names a model that is not served here, or none where there are several."""

    http_status = 400


class Unauthorized(Refused):
    """Without a token that is good for this model."""

    http_status = 401
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": "Bearer"}


class NotServed(Refused):
    """There is nothing at this address."""

    http_status = 404


class TooLarge(Refused):
    """Of its file or its body no more is read."""

    http_status = 413


class Overloaded(Refused):
    """Not here, not now. go-livepeer acts on the first two words (server/ai_process.go)."""

    http_status = 503
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}

    def __init__(self, why: str) -> None:
        super().__init__(f"insufficient capacity: {why}")


class ReplicaGone(Overloaded):
    """The replica went away under the request, which another one can run."""


def error_response(
    request: Request, status: int, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Returns ai-runner's HTTPError."""
    status = _understood(request, status)
    return JSONResponse({"detail": {"msg": message}}, status, headers)


def add_handlers(app: FastAPI) -> None:
    """Has the app answer errors so."""
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(ReplicaError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def _refused(request: Request, error: Exception) -> Response:
    if not isinstance(error, Refused | ReplicaError):
        raise TypeError(error)
    headers = error.headers if isinstance(error, Refused) else None
    return error_response(request, error.http_status, str(error), headers)


def _http(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise TypeError(error)
    return error_response(request, error.status_code, str(error.detail), error.headers)


def _invalid(request: Request, error: Exception) -> Response:  # noqa: ARG001 (as all handlers)
    """Returns FastAPI's HTTPValidationError without the input, which may be large or no JSON."""
    if not isinstance(error, RequestValidationError):
        raise TypeError(error)
    findings = [
        {"type": finding["type"], "loc": finding["loc"], "msg": finding["msg"]}
        for finding in error.errors()
    ]
    return JSONResponse({"detail": findings}, 422)


def _unexpected(request: Request, error: Exception) -> Response:
    logger.error("a fault of ours: %s", error, exc_info=error)
    return error_response(request, 500, "internal error; the log has the reason")


def _understood(request: Request, status: int) -> int:
    """The status that the client can read."""
    if not request.headers.get("user-agent", "").startswith(GO_LIVEPEER):
        return status
    pipeline = getattr(request.scope.get("route"), "name", "")
    if status in DOCUMENTED | ALSO_DOCUMENTED.get(pipeline, frozenset()):
        return status
    return 500 if status >= 500 else 400
