"""Calls of libvirt: every one in a worker thread, with a time limit, on a connection that no other
thread uses meanwhile.

libvirt's binding blocks and has no time limits of its own; a hung daemon costs the threads that
wait for it, never the event loop. They are threads of their own: the agent's other work must not
wait for them, so there are only so many, and a call that gets none in its time is one that was not
answered.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from distrib.errors import LaunchFailed, NetworkError, TimedOut, ToolMissing

T = TypeVar("T")

_THREADS = 16


class Calls:
    """Calls ``function(connection)`` on one libvirt. ``timeout_s`` bounds each."""

    def __init__(self, uri: str, *, timeout_s: float) -> None:
        try:
            # Only a node that launches guests has the binding.
            import libvirt  # noqa: PLC0415
        except ImportError as error:
            raise ToolMissing(
                "the libvirt binding for Python is not installed",
                hint="scripts/setup installs it; it must match the host's libvirt",
            ) from error
        # The default handler prints every error, also those that are expected, on stderr.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        self.libvirt: Any = libvirt
        self.uri = uri
        self._timeout_s = timeout_s
        self._idle: list[Any] = []
        self._lock = threading.Lock()
        self._closed = False
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="libvirt")

    async def close(self) -> None:
        """Close the connections that nobody uses; those in use are closed after it."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            with suppress(TimedOut):
                async with asyncio.timeout(self._timeout_s):
                    await asyncio.to_thread(self._close_connection, connection)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _thread(self, what: str, function: Callable[[Any], T]) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._in_thread, what, function)

    async def call(self, what: str, function: Callable[[Any], T]) -> T:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._thread(what, function)
        except TimeoutError as error:
            raise TimedOut(
                f"libvirt did not answer within {self._timeout_s:g} s: {what}",
                hint=f"look at the log of libvirtd ({self.uri})",
            ) from error

    def _in_thread(self, what: str, function: Callable[[Any], T]) -> T:
        connection = self._take()
        try:
            result = function(connection)
        except self.libvirt.libvirtError as error:
            if self._usable(connection):
                self._give_back(connection)
                raise LaunchFailed(f"libvirt refused: {what}: {error}") from error
            self._close_connection(connection)
            raise self._unreachable(error) from error
        except BaseException:
            self._close_connection(connection)
            raise
        self._give_back(connection)
        return result

    def _take(self) -> Any:
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                break
            if self._usable(connection):
                return connection
            self._close_connection(connection)
        try:
            return self.libvirt.open(self.uri)
        except self.libvirt.libvirtError as error:
            raise self._unreachable(error) from error

    def _give_back(self, connection: Any) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        self._close_connection(connection)

    def _usable(self, connection: Any) -> bool:
        try:
            return bool(connection.isAlive())
        except self.libvirt.libvirtError:
            return False

    def _close_connection(self, connection: Any) -> None:
        # A connection that is broken already says so when it is closed.
        with suppress(self.libvirt.libvirtError):
            connection.close()

    def _unreachable(self, error: Exception) -> NetworkError:
        return NetworkError(
            f"libvirt cannot be reached at {self.uri}: {error}",
            hint="is libvirtd running, and may this account use its socket?",
        )
