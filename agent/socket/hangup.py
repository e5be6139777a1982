"""When a peer hangs up: closed both ways, or gone. One that only says that it will not send any
more (shutdown(2), as `socat` does after its request) still waits for its answer."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import Iterator


class Hangups:
    """Tells of hang-ups by EPOLLHUP, which a stream's own end of file is not."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._epoll: select.epoll | None = None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """The time in which ``of`` may be used, inside an event loop."""
        loop = asyncio.get_running_loop()
        with select.epoll() as epoll:
            self._epoll = epoll
            loop.add_reader(epoll.fileno(), self._look)
            try:
                yield
            finally:
                loop.remove_reader(epoll.fileno())
                self._epoll = None

    @contextlib.contextmanager
    def of(self, connection: socket.socket) -> Iterator[asyncio.Future[None]]:
        """A future that is done once the peer has hung up. The socket stays open meanwhile."""
        assert self._epoll is not None  # noqa: S101 - inside ``watching``
        fd = connection.fileno()
        gone = asyncio.get_running_loop().create_future()
        self._waiting[fd] = gone
        # EPOLLHUP and EPOLLERR are told without being asked for.
        self._epoll.register(fd, select.EPOLLONESHOT)
        try:
            yield gone
        finally:
            del self._waiting[fd]
            gone.cancel()
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def _look(self) -> None:
        assert self._epoll is not None  # noqa: S101 - inside ``watching``
        for fd, _ in self._epoll.poll(0):
            gone = self._waiting.get(fd)
            if gone is not None and not gone.done():
                gone.set_result(None)
