"""Errors as HTTP answers: the documented body, and a status by who can mend the fault."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from distrib.catalogue.proposals import PART_MAX_BYTES
from distrib.errors import (
    Conflict,
    DistribError,
    Forbidden,
    ImageError,
    NetworkError,
    NoSpace,
    NotFound,
    OperatorError,
    TimedOut,
)

log = structlog.get_logger(__name__)


class Unauthenticated(Forbidden):
    """No token, or one that is unknown or has expired."""

    code = "unauthenticated"


class BodyTooLarge(OperatorError):
    """The body of a request has more bytes than this call takes."""

    code = "body-too-large"


# The first class that fits counts: subclasses before their bases.
_STATUS: tuple[tuple[type[DistribError], HTTPStatus], ...] = (
    (Unauthenticated, HTTPStatus.UNAUTHORIZED),
    (Forbidden, HTTPStatus.FORBIDDEN),
    (NotFound, HTTPStatus.NOT_FOUND),
    (Conflict, HTTPStatus.CONFLICT),
    (BodyTooLarge, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (OperatorError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (ImageError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (NoSpace, HTTPStatus.INSUFFICIENT_STORAGE),
    (TimedOut, HTTPStatus.GATEWAY_TIMEOUT),
    (NetworkError, HTTPStatus.SERVICE_UNAVAILABLE),
    (DistribError, HTTPStatus.INTERNAL_SERVER_ERROR),
)
_BUG = DistribError(
    "the controller failed at this request", hint="its log has the traceback: please report it"
)


def status_of(error: DistribError) -> HTTPStatus:
    """The HTTP status that an error is answered with."""
    return next(status for kind, status in _STATUS if isinstance(error, kind))


def answer_of(error: DistribError) -> JSONResponse:
    """The error as docs/formats/api.md has it."""
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthenticated) else None
    return JSONResponse({"error": error.as_dict()}, status_of(error), headers=headers)


def install(app: FastAPI) -> None:
    """Answer every error of ``app`` that way, also those of the framework."""

    @app.exception_handler(DistribError)
    async def ours(_request: Request, error: DistribError) -> JSONResponse:
        return answer_of(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first: dict[str, Any] = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "body"
        return answer_of(
            OperatorError(f"{where}: {first['msg']}", hint="see docs/formats/api.md", key=where)
        )

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> JSONResponse:
        what = f"{request.method} {request.url.path}: {error.detail}"
        kinds: dict[int, type[DistribError]] = {404: NotFound, 413: BodyTooLarge}
        kind = kinds.get(error.status_code, OperatorError)
        body = kind(what, hint="see /api/v1/openapi.json").as_dict()
        return JSONResponse({"error": body}, error.status_code, headers=error.headers)


class Guard:
    """ASGI middleware: bounds the body of a request, and answers what nobody has foreseen.

    Outermost, so that no traceback goes to a client and every failure is one line in the log.
    ``limit_bytes`` gives the bound of a request, None for none.
    """

    def __init__(self, app: ASGIApp, *, limits: BodyLimits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._bounded(scope, receive, sending)
        except Exception:
            log.exception("api-failed", method=scope["method"], path=scope["path"])
            if started:
                raise
            await answer_of(_BUG)(scope, receive, send)

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _is_text(scope["path"]) or b"%00" in scope["query_string"]:
            error: DistribError = OperatorError(
                "the request names something with a NUL in it, or with bytes that are no UTF-8",
                hint="names are text",
            )
            await answer_of(error)(scope, receive, send)
            return
        limit_bytes = self._limits.of(scope["method"], scope["path"])
        if limit_bytes is None:
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > limit_bytes:
            error = BodyTooLarge(
                f"a body of more than {limit_bytes} bytes", hint="this call takes no more"
            )
            await answer_of(error)(scope, receive, send)
            return
        received_bytes = 0

        async def receiving() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > limit_bytes:
                raise HTTPException(413, f"a body of more than {limit_bytes} bytes")
            return message

        await self._app(scope, receiving, send)


def _is_text(path: str) -> bool:
    """Whether a database could keep it: no NUL, and no half of a surrogate pair."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\x00" not in path


class BodyLimits:
    """How many bytes the body of a call may have. Files bound themselves by their endorsed size."""

    def __init__(self, *, plain_bytes: int, list_bytes: int, prefix: str) -> None:
        self._plain_bytes = plain_bytes
        self._list_bytes = list_bytes
        self._images = f"{prefix}/images"
        self._proposals = f"{prefix}/proposals/"

    def of(self, method: str, path: str) -> int | None:
        """The bound in bytes, None for none."""
        if method == "PUT" and path.startswith(self._images) and path.endswith("/content"):
            return None
        if method == "PUT" and path.startswith(self._proposals) and path.endswith("/content"):
            return PART_MAX_BYTES
        if method == "POST" and path == self._images:
            return self._list_bytes
        return self._plain_bytes
