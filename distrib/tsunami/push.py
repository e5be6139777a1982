"""A push: one file to hosts that have only sshd, which feed each other as the schedule says.

The schedule is owned by the thread that calls ``run``; hosts and senders talk to it by a queue. The
whole file's SHA-512 is computed on each host before it counts as done.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from distrib import errors
from distrib.errors import DigestMismatch, DistribError, NetworkError, NotFound, TimedOut
from distrib.tsunami.hosts import PlainHost
from distrib.tsunami.keys import SSH_PORT, Identity, KnownHosts
from distrib.tsunami.party import Order
from distrib.tsunami.remote import MIB, Job, Remote, Said, expiry
from distrib.tsunami.schedule import Schedule
from distrib.tsunami.trouble import Fault

ORIGIN: Final = ""
BEAT_S: Final = 15.0
GOODBYE_S: Final = 15.0
CHUNKS: Final = 256
CHUNK_MIN_MIB: Final = 4
CHUNK_MAX_MIB: Final = 64


@dataclass
class Outcome:
    """How far a host is. Bytes: verified there, found there at the start, from us, to others."""

    host: PlainHost
    state: str = "connecting"
    held: set[int] = field(default_factory=set)
    resumed_bytes: int = 0
    origin_bytes: int = 0
    served_bytes: int = 0
    error: DistribError | None = None
    fetches: bool = False
    verifying: set[int] = field(default_factory=set)
    verified: bool = False

    @property
    def is_settled(self) -> bool:
        return self.state in ("done", "failed")


class Push:
    """One push. ``run`` once."""

    def __init__(
        self,
        file: Path,
        hosts: Sequence[PlainHost],
        *,
        sha512: str,
        to: PurePosixPath,
        identity: Identity,
        known_hosts: KnownHosts,
        slots: int = 4,
        chunk_mib: int | None = None,
        deadline_s: float | None = None,
        on_progress: Callable[[int], None] = lambda _: None,
        on_outcome: Callable[[Outcome], None] = lambda _: None,
    ) -> None:
        """``deadline_s``: so many seconds after the start, who is not done has failed."""
        try:
            self._fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            self.size_bytes = os.fstat(self._fd).st_size
        except OSError as error:
            raise NotFound(f"{file}: {error.strerror}", hint="check the path") from None
        self.outcomes = {host.name: Outcome(host) for host in hosts}
        self.job = _with_keys(
            Job(sha512, self.size_bytes, chunk_mib or chunk_mib_for(self.size_bytes), to),
            hosts,
            known_hosts,
        )
        self.chunk_bytes = self.job.chunk_mib * MIB
        self.chunks = -(-self.size_bytes // self.chunk_bytes)
        self.schedule = Schedule(self.chunks, seed=int(sha512[:8], 16))
        self._slots = slots
        self._deadline_s = deadline_s
        self._on_progress = on_progress
        self._on_outcome = on_outcome
        self._said: queue.SimpleQueue[Said] = queue.SimpleQueue()
        self._held_bytes = 0
        self._hashes: dict[int, str] = {}
        self._orders: dict[tuple[str, int], Order] = {}
        self._remotes = {
            host.name: Remote(
                host, self.job, identity=identity, known_hosts=known_hosts, tell=self._said.put
            )
            for host in hosts
        }

    def run(self) -> None:
        """Push until every host is done or has failed; whatever happens, hosts are left clean."""
        threads = [
            threading.Thread(target=remote.run, name=f"push {name}", daemon=True)
            for name, remote in self._remotes.items()
        ]
        with ThreadPoolExecutor(self._slots * 2, "push origin") as self._senders:
            try:
                for thread in threads:
                    thread.start()
                self._feed()
            finally:
                self._part(threads)
                os.close(self._fd)

    # -- the loop ---------------------------------------------------------------------------------

    def _feed(self) -> None:
        began_s = beaten_s = time.monotonic()
        self.schedule.join(ORIGIN, origin=True, rack="", up_slots=self._slots)
        while not all(outcome.is_settled for outcome in self.outcomes.values()):
            try:
                said: Said | None = self._said.get(timeout=self._rest_s())
            except queue.Empty:
                said = None
            now_s = time.monotonic()
            if said is not None:
                self._hear(said, now_s)
            self._look(now_s, began_s)
            if now_s - beaten_s > BEAT_S:
                beaten_s = now_s
                for remote in self._remotes.values():
                    remote.order("beat")

    def _rest_s(self) -> float:
        wake_s = self.schedule.wake_s
        return 1.0 if wake_s is None else min(max(wake_s - time.monotonic(), 0.01), 1.0)

    def _look(self, now_s: float, began_s: float) -> None:
        self.schedule.tick(now_s)
        if self._deadline_s is not None and now_s - began_s > self._deadline_s:
            for name, outcome in self.outcomes.items():
                if not outcome.is_settled:
                    self._fail(name, TimedOut(f"{name}: the deadline has passed", hint="again"))
        for name, why in list(self.schedule.given_up.items()):
            self._fail(name, TimedOut(f"{name}: given up: {why}", hint="look at the host"))
        for order in self.schedule.next_orders(now_s):
            self._begin(order)

    def _begin(self, order: Order) -> None:
        self._orders[order.target, order.piece] = order
        target = self._remotes[order.target]
        if order.source == ORIGIN:
            self._senders.submit(self._put, target, order.piece)
            return
        source = self.outcomes[order.source].host
        target.order(
            "fetch", order.piece, self._hash(order.piece), source.port,
            f"{source.user}@{source.address}",
        )  # fmt: skip

    def _put(self, target: Remote, piece: int) -> None:
        name = target.host.name
        try:
            words = target.put(piece, self._hash(piece), self._read(piece))
        except DistribError as error:
            words = ("lost", str(piece), error.message)
        self._said.put(Said(name, words))

    # -- what hosts say ---------------------------------------------------------------------------

    def _hear(self, said: Said, now_s: float) -> None:
        outcome = self.outcomes[said.host]
        match said.words:
            case ("have" | "got" | "bad" | "lost" as word, number, *rest) if self._is_chunk(number):
                self._hear_chunk(outcome, word, int(number), " ".join(rest), now_s)
            case ("ready", how):
                self._join(outcome, fetches=how == "ssh")
            case ("done",):
                self._remotes[said.host].done()
                self._settle(outcome, "done")
            case ("differs", found):
                self._differs(outcome, found)
            case ("fault", code, *rest):
                self._fail(said.host, error_of(code, f"{said.host}: {' '.join(rest)}"))
            case ("lost-touch" | "down",):
                self._leave(outcome, said)
            case _:
                pass  # a beat, or the chatter of a login shell

    def _is_chunk(self, text: str) -> bool:
        return text.isdecimal() and len(text) < 10 and int(text) < self.chunks

    def _hear_chunk(self, outcome: Outcome, word: str, piece: int, why: str, now_s: float) -> None:
        name = outcome.host.name
        if piece in outcome.verifying:
            self._hear_verified(outcome, piece, good=word == "got")
            return
        if word == "have":
            self._hold(outcome, piece)
            outcome.resumed_bytes += self._size_of(piece)
            return
        order = self._orders.pop((name, piece), None)
        if word == "got":
            if order is None:
                self.schedule.holds(name, piece)
            else:
                self.schedule.done(order, now_s)
                self._count(order)
            self._hold(outcome, piece)
        elif order is not None:
            fault = Fault.WRONG if word == "bad" else Fault.LOST
            self.schedule.failed(order, fault, now_s, why)
        self._finish_if_whole(outcome)

    def _join(self, outcome: Outcome, *, fetches: bool) -> None:
        outcome.fetches = fetches
        if outcome.state == "connecting":
            outcome.state = "feeding"
        self.schedule.join(
            outcome.host.name,
            have=outcome.held,
            rack=outcome.host.rack,
            up_slots=self._slots,
            down_slots=self._slots,
            fetches=fetches,
        )
        self._finish_if_whole(outcome)

    def _leave(self, outcome: Outcome, said: Said) -> None:
        name = outcome.host.name
        self.schedule.leave(name)
        for key, order in list(self._orders.items()):
            if name in (order.target, order.source):
                del self._orders[key]
        self._held_bytes -= self.held_bytes(outcome)
        outcome.held.clear()
        outcome.resumed_bytes = 0
        outcome.verifying.clear()
        if not outcome.is_settled:
            outcome.state = "connecting"
        if said.words == ("down",):
            self._fail(name, said.error or NetworkError(f"{name}: gone", hint="look at the host"))

    # -- the end of a host ------------------------------------------------------------------------

    def _finish_if_whole(self, outcome: Outcome) -> None:
        if outcome.state == "feeding" and len(outcome.held) == self.chunks:
            outcome.state = "finishing"
            self._remotes[outcome.host.name].order("finish", self.job.sha512)

    def _differs(self, outcome: Outcome, found: str) -> None:
        name = outcome.host.name
        if outcome.verified:
            self._fail(
                name,
                DigestMismatch(
                    f"{name}: the file's SHA-512 there is {found[:16]}…, not"
                    f" {self.job.sha512[:16]}…",
                    hint="its disk or memory changes what is written: look at the host",
                    host=name,
                ),
            )
            return
        outcome.verified, outcome.state = True, "verifying"
        outcome.verifying = set(range(self.chunks))
        for piece in range(self.chunks):
            self._remotes[name].order("verify", piece, self._hash(piece))

    def _hear_verified(self, outcome: Outcome, piece: int, *, good: bool) -> None:
        outcome.verifying.discard(piece)
        if not good:
            outcome.held.discard(piece)
            self._held_bytes -= self._size_of(piece)
            self.schedule.lacks(outcome.host.name, piece)
        if not outcome.verifying:
            outcome.state = "feeding"
            self._finish_if_whole(outcome)

    def _fail(self, name: str, error: DistribError) -> None:
        outcome = self.outcomes[name]
        if not outcome.is_settled:
            outcome.error = error
            self._settle(outcome, "failed")
            self.schedule.leave(name)
            self._remotes[name].end()

    def _settle(self, outcome: Outcome, state: str) -> None:
        if not outcome.is_settled:
            outcome.state = state
            self._on_outcome(outcome)

    def _part(self, threads: Sequence[threading.Thread]) -> None:
        """Have every host clean up, and wait for it, but not for ever."""
        for remote in self._remotes.values():
            remote.end()
        until_s = time.monotonic() + GOODBYE_S
        for thread, remote in zip(threads, self._remotes.values(), strict=True):
            if remote.is_connected:
                thread.join(max(0.0, until_s - time.monotonic()))
        for remote in self._remotes.values():
            remote.abandon()

    # -- bytes ------------------------------------------------------------------------------------

    @property
    def origin_bytes(self) -> int:
        """What this machine sent of chunks that arrived."""
        return sum(outcome.origin_bytes for outcome in self.outcomes.values())

    def held_bytes(self, outcome: Outcome) -> int:
        return sum(map(self._size_of, outcome.held))

    def _count(self, order: Order) -> None:
        size = self._size_of(order.piece)
        if order.source == ORIGIN:
            self.outcomes[order.target].origin_bytes += size
        else:
            self.outcomes[order.source].served_bytes += size

    def _hold(self, outcome: Outcome, piece: int) -> None:
        if piece not in outcome.held:
            outcome.held.add(piece)
            self._held_bytes += self._size_of(piece)
            self._on_progress(self._held_bytes)

    def _size_of(self, piece: int) -> int:
        return min(self.chunk_bytes, self.size_bytes - piece * self.chunk_bytes)

    def _read(self, piece: int) -> bytes:
        return os.pread(self._fd, self._size_of(piece), piece * self.chunk_bytes)

    def _hash(self, piece: int) -> str:
        known = self._hashes.get(piece)
        if known is None:
            known = self._hashes[piece] = hashlib.sha512(self._read(piece)).hexdigest()
        return known


def chunk_mib_for(size_bytes: int) -> int:
    """About 256 chunks, of 4 to 64 MiB."""
    return min(max(-(-size_bytes // (CHUNKS * MIB)), CHUNK_MIN_MIB), CHUNK_MAX_MIB)


def error_of(code: str, text: str) -> DistribError:
    """The error of a code that a host said; of unknown ones a NodeError."""
    kinds: Mapping[str, type[DistribError]] = {
        one.code: one
        for one in vars(errors).values()
        if isinstance(one, type) and issubclass(one, DistribError)
    }
    return kinds.get(code, errors.NodeError)(text, hint="look at the host")


def _with_keys(job: Job, hosts: Sequence[PlainHost], known_hosts: KnownHosts) -> Job:
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    place = job.directory
    line = (
        f'restrict,expiry-time="{expiry()}",'
        f"command=\"sh '{place}/host.sh' serve '{place}'\" {public.decode()} distrib-push"
    )
    known = [line for host in hosts for line in _known(host, known_hosts)]
    return replace(job, key=private.decode(), line=line, known_hosts="\n".join(known))


def _known(host: PlainHost, known_hosts: KnownHosts) -> list[str]:
    trust = known_hosts.of(host.address, host.port)
    name = host.address if host.port == SSH_PORT else f"[{host.address}]:{host.port}"
    marked = {"": trust.keys, "@cert-authority ": trust.authorities, "@revoked ": trust.revoked}
    return [f"{mark}{name} {key}" for mark, keys in marked.items() for key in keys]
