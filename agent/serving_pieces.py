"""What a peer's key runs: the agent's images as a shelf, and the line that limits the key to it.

The process is short-lived and holds no rights of its own: the agent on this node decides what may
be read, and hands over the volume open for reading (docs/formats/socket.md, ``pieces``).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from agent.socket.client import AgentError, ask
from distrib.errors import (
    DistribError,
    MessageInvalid,
    NetworkError,
)
from distrib.tsunami.admitting import limited
from distrib.tsunami.serving import Lent

CONNECT_S: Final = 10.0
LINE_MAX_BYTES: Final = 4 << 20
MARK: Final = "serve-pieces"
COMMENT: Final = "distrib-pieces"


class AgentShelf:
    """The images of the agent that listens on a socket."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lend(self, infohash: str) -> Lent:
        """See ``Shelf.lend``."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            lines = _Lines(connection)
            connection.settimeout(CONNECT_S)
            connection.connect(str(self._path))
            request = {"v": 1, "op": "pieces", "args": {"infohash": infohash}}
            connection.sendall(json.dumps(request).encode() + b"\n")
            first = lines.next()
            connection.settimeout(None)
            fd = lines.descriptor()
        except OSError as error:
            connection.close()
            raise NetworkError(
                f"the agent: {error.strerror or error}", hint="is distrib-agent running there?"
            ) from None
        except DistribError:
            connection.close()
            raise

        def close() -> None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

        try:
            return Lent(
                fd,
                int(first["size_bytes"]),
                int(first["piece_bytes"]),
                base64.b64decode(first["have"]),
                lambda: _updates(lines),
                lambda first, count: self._hashes(infohash, first, count),
                close,
            )
        except (KeyError, ValueError, TypeError, binascii.Error):
            os.close(fd)
            close()
            raise MessageInvalid("the agent: not an answer", hint="of another version?") from None

    def _hashes(self, infohash: str, first: int, count: int) -> bytes:
        answer = ask(self._path, "hashes", infohash=infohash, first=first, count=count)
        return base64.b64decode(answer["hashes"])


class _Lines:
    """JSON lines of one connection, and the descriptor that comes with the first."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""
        self._fds: list[int] = []

    def next(self) -> dict[str, Any]:
        """Raises AgentError with what the agent says, NetworkError when it is gone."""
        while b"\n" not in self._buffer:
            data, fds, _, _ = socket.recv_fds(self._connection, 1 << 16, 1, socket.MSG_CMSG_CLOEXEC)
            self._fds += fds
            self._buffer += data
            if not data or len(self._buffer) > LINE_MAX_BYTES:
                raise NetworkError("the agent hung up", hint="it is restarting, or busy")
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if answer.get("ok") is False:
            raise AgentError(answer["error"])
        return answer

    def descriptor(self) -> int:
        if not self._fds:
            raise MessageInvalid("the agent sent no descriptor", hint="of another version?")
        return self._fds.pop()


def _updates(lines: _Lines) -> Iterator[Iterable[tuple[int, int]]]:
    while True:
        try:
            news = lines.next()
        except OSError:
            return
        yield [(int(first), int(count)) for first, count in news.get("have", ())]


def key_line(public_key: str, *, agent_socket: Path, authority: bool = False) -> str:
    """The line of ``authorized_keys`` for a public key. Raises OperatorError for what is none."""
    words = (sys.executable, "-I", "-m", "agent", "--socket", str(agent_socket), MARK)
    return limited(public_key, words, comment=COMMENT, authority=authority)
