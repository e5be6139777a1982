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
import re
import shlex
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from agent.socket.client import AgentError, ask
from distrib.errors import (
    DistribError,
    MessageInvalid,
    NetworkError,
    NotFound,
    OperatorError,
    StorageFailed,
)
from distrib.tsunami.serving import Lent

CONNECT_S: Final = 10.0
LINE_MAX_BYTES: Final = 4 << 20
MARK: Final = "serve-pieces"
COMMENT: Final = "distrib-pieces"

_KEY = re.compile(
    r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)|sk-[a-z0-9@.-]+) [A-Za-z0-9+/]+=*"
)


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
    found = _KEY.match(public_key.strip())
    if found is None:
        raise OperatorError("not a public key", hint="one line of a .pub file")
    words = (sys.executable, "-I", "-m", "agent", "--socket", str(agent_socket), MARK)
    command = shlex.join(words)
    if any(char in command for char in '"\\\n'):
        raise OperatorError(f"{command}: cannot be quoted", hint="use paths without quotes")
    options = ["cert-authority"] if authority else []
    options += ["restrict", f'command="{command}"']
    return f"{','.join(options)} {found[0]} {COMMENT}"


def install(file: Path, lines: Sequence[str]) -> None:
    """Have these lines of ours in an ``authorized_keys`` file, and no others of ours.

    Lines of others stay. Raises StorageFailed."""
    try:
        before = file.read_text("utf-8").splitlines() if file.exists() else []
        kept = [line for line in before if not line.rstrip().endswith(COMMENT)]
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = file.with_name(f".{file.name}.distrib")
        fresh.unlink(missing_ok=True)
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as stream:
            stream.write("".join(f"{line}\n" for line in (*kept, *lines)))
            if file.exists():
                os.fchown(fd, file.stat().st_uid, file.stat().st_gid)
                os.fchmod(fd, file.stat().st_mode & 0o777)
            stream.flush()
            os.fsync(fd)
        fresh.replace(file)
    except OSError as error:
        raise StorageFailed(f"{file}: {error.strerror}", hint="check its directory") from None


def read_public_key(file: Path) -> str:
    """The text of a .pub file. Raises NotFound."""
    try:
        return file.read_text("utf-8", errors="replace").strip()
    except OSError as error:
        raise NotFound(f"{file}: {error.strerror}", hint="name a .pub file") from None
