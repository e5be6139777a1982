"""uvicorn with TLS inside a loop that somebody else runs; signals stay theirs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import uvicorn
from fastapi import FastAPI
from pydantic import Field

from distrib.config import Section
from distrib.errors import ConfigInvalid

log = structlog.get_logger(__name__)

# Streams of a rollout have no end of their own to wait for.
_GRACE_S = 1


class ApiSettings(Section):
    """Where the API answers."""

    address: str = Field("0.0.0.0", description="address to listen on")  # noqa: S104
    port: int = Field(8443, ge=0, le=65535, description="TCP port; 0: any free one")
    cert: Path = Field(Path("/etc/distrib/server.pem"), description="certificate, its chain after")
    key: Path = Field(Path("/etc/distrib/server.key"), description="its private key")


class _Server(uvicorn.Server):
    """Says when it is up, and leaves signals alone: the controller ends by its own order."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, and then ``up`` is set."""
        await super().startup(sockets)
        self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing is captured."""
        yield


@asynccontextmanager
async def serving(app: FastAPI, settings: ApiSettings) -> AsyncIterator[int]:
    """Serve ``app`` over TLS while the block runs; gives the port.

    Raises ConfigInvalid for an address or certificate that cannot be used.
    """
    listener = _listen(settings)
    with contextlib.closing(listener):
        server = _Server(_config(app, settings))
        task = asyncio.create_task(server.serve(sockets=[listener]), name="api")
        up = asyncio.create_task(server.up.wait(), name="api up")
        await asyncio.wait({task, up}, return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        if task.done():
            task.result()
        port: int = listener.getsockname()[1]
        log.info("api-listening", address=settings.address, port=port)
        try:
            yield port
        finally:
            server.should_exit = True
            await task
            await _drop_what_is_left(server)


async def _drop_what_is_left(server: _Server) -> None:
    """uvicorn cancels what outlasts the grace, and leaves its connections open."""
    for connection in tuple(server.server_state.connections):
        transport = getattr(connection, "transport", None)
        if transport is not None:
            transport.abort()
    # The loop closes a socket in the round after.
    await asyncio.sleep(0)


def _listen(settings: ApiSettings) -> socket.socket:
    where = f"api.address = {settings.address}, api.port = {settings.port}"
    try:
        family = socket.AF_INET6 if ":" in settings.address else socket.AF_INET
        return socket.create_server((settings.address, settings.port), family=family, backlog=512)
    except OSError as error:
        raise ConfigInvalid(
            f"{where}: {error.strerror}", hint="another program may listen there"
        ) from None


def _config(app: FastAPI, settings: ApiSettings) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        ssl_certfile=str(settings.cert),
        ssl_keyfile=str(settings.key),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise ConfigInvalid(
            f"api.cert = {settings.cert}, api.key = {settings.key}: {error}",
            hint="PEM files that fit each other, readable for the controller",
        ) from None
    return config
