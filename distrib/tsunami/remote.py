"""One host of a push: its connection, the script on it, and what it says, as events in a queue.

Formats: docs/formats/tsunami.md. One thread a host reads; chunks are sent by others.
"""

from __future__ import annotations

import contextlib
import shlex
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Final

from distrib.errors import DistribError, NetworkError, StorageFailed
from distrib.tsunami.hosts import PlainHost
from distrib.tsunami.keys import Identity, KnownHosts
from distrib.tsunami.ssh import Connection, Limits, Stream, connect

MIB: Final = 1 << 20
ATTEMPTS: Final = 3
AGAIN_S: Final = 1.0
LIMITS: Final = Limits(silence_s=45.0, window_bytes=2 << 20)
"""A worker answers a beat every 15 s."""


@dataclass(frozen=True)
class Said:
    """A line of a host's worker, in words; ``("down",)`` with an error when it ended."""

    host: str
    words: tuple[str, ...]
    error: DistribError | None = None


@dataclass(frozen=True)
class Job:
    """What is pushed where, the same for every host. ``key`` is the push's own private key,
    ``line`` what admits it, ``known_hosts`` all hosts."""

    sha512: str
    size_bytes: int
    chunk_mib: int
    to: PurePosixPath
    key: str = ""
    line: str = ""
    known_hosts: str = ""

    @property
    def directory(self) -> str:
        return directory_of(self.sha512, self.chunk_mib, self.to)


def directory_of(sha512: str, chunk_mib: int, to: PurePosixPath) -> str:
    """Where everything lies on a host."""
    return str(to.parent / f".distrib-push-{sha512[:16]}-{chunk_mib}")


def script() -> bytes:
    """What runs on hosts."""
    return (files("distrib.tsunami") / "host.sh").read_bytes()


class Remote:
    """A host that is fed. ``run`` blocks for as long as it is connected."""

    def __init__(
        self,
        host: PlainHost,
        job: Job,
        *,
        identity: Identity,
        known_hosts: KnownHosts,
        tell: Callable[[Said], None],
    ) -> None:
        self.host = host
        self._job = job
        self._identity = identity
        self._known_hosts = known_hosts
        self._tell = tell
        self._connection: Connection | None = None
        self._worker: Stream | None = None
        self._ending = threading.Event()
        self._is_done = False

    def run(self) -> None:
        """Connect, have the script run, hand on what it says; again when the connection is lost.

        Ends with ``down``, always."""
        error: DistribError | None = None
        for attempt in range(ATTEMPTS):
            if attempt and (self._ending.is_set() or self._ending.wait(AGAIN_S * attempt)):
                break
            try:
                was_up = self._session()
            except NetworkError as lost:
                error, was_up = lost, self._worker is not None
            except DistribError as other:
                error, was_up = other, False
            finally:
                self._close()
            if self._ending.is_set() or self._is_done or not was_up:
                break
            self._tell(Said(self.host.name, ("lost-touch",), error))
        self._tell(Said(self.host.name, ("down",), error))

    def order(self, *words: object) -> None:
        """Send one order; that the connection is lost is told by ``run``."""
        self._send(" ".join(map(str, words)) + "\n")

    def put(self, number: int, sha512: str, data: bytes) -> tuple[str, ...]:
        """Send a chunk; the worker's answer in words. Blocks. Raises NetworkError, TimedOut."""
        connection = self._connection
        if connection is None:
            raise NetworkError(f"{self.host.name}: not connected", hint="it is tried again")
        stream = connection.run(self._command("put", number, sha512))
        try:
            stream.write(data)
            stream.end_input()
            answer = b""
            while more := stream.read():
                answer += more
            words = tuple(answer.decode(errors="replace").split(maxsplit=2))
            if not words:
                raise NetworkError(
                    f"{self.host.name}: {stream.complaint() or 'no answer'}", hint="see its log"
                )
            return words
        finally:
            stream.close()

    def done(self) -> None:
        """It has the file: should the connection be lost, it is not made again."""
        self._is_done = True

    def end(self, *, purge: bool = False) -> None:
        """Have the host clean up; ``run`` ends when it has."""
        self._ending.set()
        self.order("end", *(["purge"] if purge else []))

    @property
    def is_connected(self) -> bool:
        """Whether there may be something to clean up on the host."""
        return self._connection is not None

    def abandon(self) -> None:
        """Close the connection, whatever the host does."""
        self._ending.set()
        self._close()

    def clean(self) -> str:
        """Remove what any push of these bytes left. Raises DistribError."""
        self._connection = connect_to(self.host, self._identity, self._known_hosts)
        try:
            self._upload()
            status, text = self._connection.output(self._command("clean"))
            if status != 0:
                raise StorageFailed(f"{self.host.name}: {text.strip()}", hint="look at the host")
            return text.strip()
        finally:
            self._close()

    # -- one session ------------------------------------------------------------------------------

    def _session(self) -> bool:
        """Whether the worker ever ran. Raises DistribError."""
        self._connection = connect_to(self.host, self._identity, self._known_hosts)
        self._upload()
        job = self._job
        self._worker = worker = self._connection.run(
            self._command("worker", job.to, job.size_bytes, job.chunk_mib)
        )
        for name, text in (
            ("key", job.key),
            ("known_hosts", job.known_hosts),
            ("line", job.line),
        ):
            lines = text.splitlines()
            self._send("".join(f"{line}\n" for line in (f"file {name} {len(lines)}", *lines)))
        self.order("begin")
        rest = b""
        while data := worker.read():
            *told, rest = (rest + data).split(b"\n")
            for line in told:
                words = tuple(line.decode(errors="replace").split(maxsplit=2))
                if words:
                    self._tell(Said(self.host.name, words))
        if not self._ending.is_set():
            raise NetworkError(
                f"{self.host.name}: {worker.complaint() or 'the connection ended'}",
                hint="look at the host",
                host=self.host.name,
            )
        return True

    def _upload(self) -> None:
        assert self._connection is not None  # noqa: S101 - just made
        place = shlex.quote(self._job.directory)
        # Beside the file others may be at home too (/tmp): what they put there is not run.
        upload = (
            f"umask 077; [ -d {place} ] || mkdir {place} || exit;"
            f" [ -O {place} ] && [ ! -L {place} ] || {{ echo {place} is not ours; exit 1; }};"
            f" cd {place} && cat >host.sh.new && mv -f host.sh.new host.sh"
        )
        status, text = self._connection.output(f"exec sh -c {shlex.quote(upload)}", script())
        if status != 0:
            raise StorageFailed(
                f"{self.host.name}: {text.strip() or 'the directory cannot be made'}",
                hint="--to names a file in a directory that is there and may be written to",
                host=self.host.name,
            )

    def _command(self, role: str, *words: object) -> str:
        place = self._job.directory
        quoted = shlex.join([f"{place}/host.sh", role, place, *map(str, words)])
        return f"exec sh {quoted}"

    def _send(self, text: str) -> None:
        worker = self._worker
        if worker is not None:
            with contextlib.suppress(NetworkError):
                worker.write(text.encode())

    def _close(self) -> None:
        self._worker = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def connect_to(host: PlainHost, identity: Identity, known_hosts: KnownHosts) -> Connection:
    """Raises DistribError."""
    return connect(
        host.address,
        host.port,
        host.user,
        identity=identity,
        trust=known_hosts.of(host.address, host.port),
        limits=LIMITS,
    )


def expiry(*, hours: int = 24) -> str:
    """As authorized_keys has it, UTC taken for the host's own time."""
    return time.strftime("%Y%m%d%H%M", time.gmtime(time.time() + hours * 3600))
