"""No address holds so many connections to a session that none are left for others.

A local user of a node, or a guest, shares the node's address, and opens as many as he likes.
libtorrent counts connections of everybody together, tells of none before its handshake, and has no
call to close one. So a session takes ``SPARE`` more than it is set to, and looks each second at the
sockets of its own process: of an address with more than one for each of its torrents, and ``MOST``
beside, the surplus is shut down, which libtorrent takes for the peer's end, and for
``REMEMBERED_S`` the address is let in only while half of the spare ones are left.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

MOST = 32
"""Connections that an address may hold beyond one for each torrent of the session: those of a local
user or of other nodes behind the address, and of two that are tried at once."""

SPARE = 1000
REMEMBERED_S = 60.0
_FEW_FILES = 2 * MOST
_FILES = 65_536
_OWN_FILES = Path("/proc/self/fd")

Endpoint = tuple[str, int]


@dataclass(frozen=True)
class Held:
    """A connection that was accepted: from where, since when, and the payload that it carried."""

    peer: Endpoint
    since_s: float
    moved_bytes: int = 0


def surplus(held: Iterable[Held], most: int) -> list[Held]:
    """Which to shut down, so that no address has more than ``most``. Pure.

    Half of the places are for those that carried most, half for the newest: a peer that comes while
    somebody holds all the others has until the next look to get going."""
    by_address: defaultdict[str, list[Held]] = defaultdict(list)
    for one in held:
        by_address[one.peer[0]].append(one)
    found: list[Held] = []
    for of_address in by_address.values():
        if len(of_address) > most:
            working = sorted(
                (one for one in of_address if one.moved_bytes),
                key=lambda one: one.moved_bytes,
                reverse=True,
            )
            kept = set(working[: most // 2])
            newest = sorted(of_address, key=lambda one: one.since_s, reverse=True)
            for one in newest:
                if len(kept) < most:
                    kept.add(one)
            found += (one for one in of_address if one not in kept)
    return found


class Crowding:
    """Looks after one listening address and port (``0.0.0.0``, ``::``: any address)."""

    def __init__(
        self, address: str, port: int, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._address = None if address in {"0.0.0.0", "::"} else address  # noqa: S104 - compared
        self._port = port
        self._monotonic = monotonic
        self._since_s: dict[Endpoint, float] = {}
        self._until_s: dict[str, float] = {}

    @property
    def crowded(self) -> Collection[str]:
        """Addresses that had too many of late."""
        return self._until_s.keys()

    def look(self, moved: Mapping[Endpoint, int], *, torrents: int) -> bool:
        """Shut down what is too much; whether ``crowded`` is another now.

        ``moved``: payload of each connection, in bytes; ``torrents`` are open.
        Reads /proc; to be run in a thread."""
        now_s, before, most = self._monotonic(), set(self._until_s), MOST + torrents
        self._until_s = {one: at_s for one, at_s in self._until_s.items() if at_s > now_s}
        accepted = dict(self._accepted())
        self._since_s = {peer: self._since_s.get(peer, now_s) for peer in accepted}
        held = [Held(peer, self._since_s[peer], moved.get(peer, 0)) for peer in accepted]
        cut = surplus(held, most)
        for one in cut:
            self._shut(one.peer, accepted[one.peer])
        for address in {one.peer[0] for one in cut}:
            if address not in before:
                log.warning("too-many-connections", address=address, most=most)
            self._until_s[address] = now_s + REMEMBERED_S
        return before != set(self._until_s)

    def _accepted(self) -> Iterator[tuple[Endpoint, int]]:
        """Peers that connected to us, each with its file descriptor."""
        descriptors = [int(link.name) for link in _OWN_FILES.iterdir()]
        if len(descriptors) <= _FEW_FILES:
            return
        for descriptor in descriptors:
            with contextlib.suppress(OSError), self._opened(descriptor) as own:
                if own is not None:
                    yield own.getpeername()[:2], descriptor

    def _shut(self, peer: Endpoint, descriptor: int) -> None:
        # The number may be another connection's by now.
        with contextlib.suppress(OSError), self._opened(descriptor) as own:
            if own is not None and own.getpeername()[:2] == peer:
                own.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def _opened(self, descriptor: int) -> Iterator[socket.socket | None]:
        """A copy of a descriptor, where it is a connection to our port."""
        if not str((_OWN_FILES / str(descriptor)).readlink()).startswith("socket:"):
            yield None
            return
        with socket.socket(fileno=os.dup(descriptor)) as own:
            here = own.family in {socket.AF_INET, socket.AF_INET6}
            if here:
                address, port = own.getsockname()[:2]
                here = port == self._port and self._address in {None, address}
            yield own if here else None


def share_percent(connections: int) -> int:
    """libtorrent's ``connection_limit_factor`` of who is let in while half of the spare is left.

    Not less: the agent at that address would have to be quicker than whoever refills it."""
    return math.ceil(100 * (connections + SPARE) / (connections + SPARE // 2))


def allow_files() -> None:
    """Let this process have as many files open as it may, so that connections do not use up what
    everything else needs (systemd's default is 1024)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
