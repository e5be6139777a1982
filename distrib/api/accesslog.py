"""One line in the log for each call that changes or fails; the rest at debug level."""

from __future__ import annotations

import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = structlog.get_logger(__name__)


class AccessLog:
    """ASGI middleware: method, path, status, duration, and whose token it was."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request and note it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            quiet = scope["method"] == "GET" and status < 400
            note = log.debug if quiet else log.info
            note(
                "api-call",
                method=scope["method"],
                path=scope["path"][:300],
                status=status,
                took_ms=round((time.monotonic() - began) * 1000),
                actor=scope.get("state", {}).get("actor"),
                client=(scope.get("client") or ("",))[0],
            )
