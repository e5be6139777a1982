"""Hashes of all pieces of a large file, on all cores; its SHA-512 in the same reading.

Small files are hashed in place. Large ones by processes (``hash_worker``), each of which takes
the next range as it is done with one. Where the SHA-512 is wanted too, the file is read once, here,
into a ring in memory that the processes hash from: so both are of the same bytes whatever is done
to the file meanwhile. Figures: docs/decisions/0030-making-torrents.md.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from queue import SimpleQueue

from distrib.errors import StorageFailed
from distrib.swarm.hash_worker import RANGE, read_fully
from distrib.swarm.merkle import HASH_BYTES, leaves_of, piece_hash

IN_PLACE_MAX_BYTES = 64 << 20
"""Up to this a file is hashed sooner than processes have started."""

RANGE_BYTES = 4 << 20
"""What a process is told at a time: long beside a pipe's round trip, short beside the file."""

MAX_WORKERS = 16

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Hashed:
    """``hashes``: one a piece, 32 bytes, in order. ``sha512``: hex, where it was wanted."""

    hashes: list[bytes]
    sha512: str | None


@dataclass(frozen=True)
class _Work:
    """How a file is hashed: pieces in ranges, each with offset and length in bytes."""

    size_bytes: int
    piece_bytes: int

    @property
    def leaves(self) -> int:
        return leaves_of(self.size_bytes, self.piece_bytes)

    @property
    def step(self) -> int:
        return max(RANGE_BYTES, self.piece_bytes)

    def ranges(self) -> list[tuple[int, int]]:
        size = self.size_bytes
        return [(at, min(self.step, size - at)) for at in range(0, size, self.step)]


def hash_file(
    fd: int,
    size_bytes: int,
    *,
    piece_bytes: int,
    digest: bool = False,
    workers: int | None = None,
    on_progress: Progress = lambda _bytes: None,
) -> Hashed:
    """Hash what is open at ``fd``; ``digest``: SHA-512 of all of it as well.

    Blocks. ``on_progress`` gets bytes hashed so far, in this thread. Interrupted, it leaves no
    process behind. Raises StorageFailed where the file cannot be read or has become shorter.
    """
    work = _Work(size_bytes, piece_bytes)
    if workers is None and size_bytes <= IN_PLACE_MAX_BYTES:
        return _in_place(fd, work, digest=digest, on_progress=on_progress)
    count = min(workers or default_workers(), MAX_WORKERS)
    if digest:
        return _through_ring(fd, work, count, on_progress)
    with _workers(fd, work, count) as ask:
        waiting = [ask(at, length) for at, length in work.ranges()]
        return Hashed(_collected(waiting, work, on_progress), None)


def default_workers() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _in_place(fd: int, work: _Work, *, digest: bool, on_progress: Progress) -> Hashed:
    whole, hashes = hashlib.sha512(), []
    buffer = memoryview(bytearray(work.piece_bytes))
    for at in range(0, work.size_bytes, work.piece_bytes):
        piece = buffer[: min(work.piece_bytes, work.size_bytes - at)]
        with _named(at):
            read_fully(fd, piece, at)
        hashes.append(piece_hash(piece, leaves=work.leaves))
        if digest:
            whole.update(piece)
        on_progress(at + len(piece))
    return Hashed(hashes, whole.hexdigest() if digest else None)


def _through_ring(fd: int, work: _Work, count: int, on_progress: Progress) -> Hashed:
    """Read here, once; the workers hash what was read while SHA-512, which cannot be divided,
    follows it in this thread."""
    ranges, slots = work.ranges(), 2 * count + 1
    whole = hashlib.sha512()
    with ExitStack() as stack:
        ring_fd = os.memfd_create("distrib-hashing")
        stack.callback(os.close, ring_fd)
        os.ftruncate(ring_fd, slots * work.step)
        ring = stack.enter_context(mmap.mmap(ring_fd, slots * work.step))
        ask = stack.enter_context(_workers(ring_fd, work, count))
        view = stack.enter_context(memoryview(ring))
        waiting: list[Future[bytes]] = []
        for number, (at, length) in enumerate(ranges):
            if number >= slots:
                _result(waiting[number - slots], ranges[number - slots][0])
            slot = number % slots * work.step
            # The disk reads on while the digest is worked out.
            os.posix_fadvise(fd, at + length, 2 * work.step, os.POSIX_FADV_WILLNEED)
            with view[slot : slot + length] as part:
                with _named(at):
                    read_fully(fd, part, at)
                waiting.append(ask(slot, length))
                whole.update(part)
            on_progress(at)
        hashes = _collected(waiting, work, lambda _bytes: None)
    on_progress(work.size_bytes)
    return Hashed(hashes, whole.hexdigest())


Ask = Callable[[int, int], "Future[bytes]"]


@contextmanager
def _workers(fd: int, work: _Work, count: int) -> Iterator[Ask]:
    """Processes that hash ranges of ``fd``: call with offset and length. Gone at the end."""
    idle: SimpleQueue[_Worker] = SimpleQueue()
    started: list[_Worker] = []
    ending = threading.Event()

    def hashed(at: int, length: int) -> bytes:
        if ending.is_set():
            return b""
        worker = idle.get()
        try:
            return worker.hashes(at, length)
        finally:
            idle.put(worker)

    try:
        for _ in range(count):
            started.append(_Worker(fd, work))
            idle.put(started[-1])
        with ThreadPoolExecutor(count, thread_name_prefix="hashing") as pool:
            try:
                yield lambda at, length: pool.submit(hashed, at, length)
            except BaseException:
                # Whoever is interrupted, or finds a bad disk, does not wait for the rest.
                ending.set()
                for worker in started:
                    worker.kill()
                raise
    finally:
        for worker in started:
            worker.close()


class _Worker:
    """One process, asked over a socket."""

    def __init__(self, fd: int, work: _Work) -> None:
        self._piece_bytes = work.piece_bytes
        self._socket, theirs = socket.socketpair()
        with theirs:
            shape = (str(fd), str(work.piece_bytes), str(work.leaves))
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-m", "distrib.swarm.hash_worker", *shape],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                pass_fds=(fd,),
                # Ctrl-C is for the process that asks: it ends this one by closing the socket.
                process_group=0,
            )

    def hashes(self, at: int, length: int) -> bytes:
        """The hashes of a range. Raises OSError with the errno that the process ended with."""
        wanted = -(-length // self._piece_bytes) * HASH_BYTES
        answer = bytearray()
        # A process that has ended says why by its status.
        with suppress(ConnectionError):
            self._socket.sendall(RANGE.pack(at, length))
            while len(answer) < wanted and (part := self._socket.recv(wanted - len(answer))):
                answer += part
        if len(answer) < wanted:
            status = max(self._process.wait(), errno.EIO)
            raise OSError(status, os.strerror(status))
        return bytes(answer)

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


def _collected(waiting: Sequence[Future[bytes]], work: _Work, on_progress: Progress) -> list[bytes]:
    hashes: list[bytes] = []
    for answer, (at, length) in zip(waiting, work.ranges(), strict=True):
        several = _result(answer, at)
        hashes += [several[i : i + HASH_BYTES] for i in range(0, len(several), HASH_BYTES)]
        on_progress(at + length)
    return hashes


def _result(answer: Future[bytes], at: int) -> bytes:
    with _named(at):
        return answer.result()


@contextmanager
def _named(at: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageFailed(
            f"reading at byte {at}: {error.strerror}",
            hint="check the disk: see the kernel's log for the device",
        ) from None
