"""What a seeder and an agent with many large images need at rest: memory and CPU of real processes.

A farm of one node: `distrib up` (broker, controller, seeder) and an agent, on loopback addresses
(run it in a network namespace of its own: `unshare -n`, with `lo` up). The images are sparse files
whose torrents have as many piece hashes as ones without holes, since these are what stays in
memory. Nothing is hashed or sent: what a seeder's store and a node's state hold after a publication
and a pull is put there, through the agent's own cache, and what approvals leave in the controller's
database too: it publishes the site list by itself. Each torrent is asked for once, by a handshake
with the node.
"""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from unittest import mock

from agent.cache.cache import Cache
from agent.cache.file import FileStore
from agent.cache.records import ImageVersion
from agent.pull.torrents import TorrentFiles
from agent.socket.client import ask
from distrib.catalogue.entries import entry_of
from distrib.db.counters import CATALOGUE_CHANGES, rise
from distrib.db.models import AcceptedList, ImageState
from distrib.db.models import Image as ImageRow
from distrib.db.session import Database, sqlite_url
from distrib.swarm import IMAGE_FILE, TORRENT_FILE
from distrib.swarm.merkle import BLOCK_BYTES, piece_hash
from distrib.swarm.torrent import info_of, parse_info, piece_bytes_for, torrent_of
from distrib.trust.imagelist import Image
from distrib.trust.siteimage import Origin, SiteImage
from tests.farm.farm import SWARM_PORT, Farm, Loopback, Node, farm_on_loopback
from tests.farm.process import eventually

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
SETTLED_S = 10.0
LIST_ID = str(uuid.uuid4())
LIST_SHA512 = hashlib.sha512(LIST_ID.encode()).hexdigest()


@dataclass(frozen=True)
class Load:
    """One process over a time; ``most_mb`` is the most that it ever had."""

    rss_mb: float
    most_mb: float
    cpu_percent: float


@dataclass(frozen=True)
class Made:
    """An image with its torrent; of its bytes only the first piece is no hole."""

    entry: SiteImage
    torrent: bytes
    first: bytes

    def write(self, file: Path) -> None:
        with file.open("r+b" if file.exists() else "wb") as out:
            out.truncate(self.entry.size_bytes)
            out.write(self.first)


def measured(images: int, size_gb: float, seconds: float) -> dict[str, object]:
    """``images`` on one node; both sides are looked at for ``seconds`` of rest."""
    made = list(_made(images, int(size_gb * 1e9)))
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="distrib-many-") as folder:
        room = {"capacity_bytes": 2 * sum(one.entry.size_bytes for one in made)}
        with farm_on_loopback(Path(folder), 1, add=False) as farm:
            node = farm.add_node("wn1", Loopback(2), cache=room)
            assert farm.head is not None
            _fill_store(farm, made)
            _fill_node(node, made)
            _approve(farm, made)
            log = farm.state / "log" / "seeder.log"
            eventually("all are seeded", lambda: _count(log, "seeding") >= images, limit_s=120)
            node.start()
            assert node.agent is not None
            eventually("all are on the node", lambda: _ready(node) == images, limit_s=120)
            address = node.host.address
            for one in made:
                eventually("it is served", partial(is_served, address, one.entry), limit_s=120)
            ready_s = time.monotonic() - began_s
            processes = {"agent": node.agent.pid} | _children_of(farm.head.pid)
            _settle(processes)
            loads = _watched(processes, seconds)
    figures: dict[str, object] = {
        "images": images,
        "size_gb": size_gb,
        "pieces_each": parse_info(info_of(made[0].torrent)).pieces,
        "seconds": seconds,
        "ready_s": round(ready_s, 1),
    }
    for name, load in loads.items():
        figures[f"{name}_rss_mb"] = load.rss_mb
        figures[f"{name}_most_rss_mb"] = load.most_mb
        figures[f"{name}_cpu_percent"] = load.cpu_percent
    return figures


def _made(images: int, size_bytes: int) -> Iterator[Made]:
    piece_bytes = piece_bytes_for(size_bytes)
    size_bytes = size_bytes // piece_bytes * piece_bytes
    leaves = piece_bytes // BLOCK_BYTES
    hole = piece_hash(bytes(piece_bytes), leaves=leaves)
    for _ in range(images):
        first = os.urandom(16)
        hashes = [piece_hash(first.ljust(piece_bytes, b"\0"), leaves=leaves)]
        hashes += [hole] * (size_bytes // piece_bytes - 1)
        torrent = torrent_of(hashes, size_bytes=size_bytes, piece_bytes=piece_bytes)
        sha512 = hashlib.sha512(first).hexdigest()
        name = str(uuid.uuid4())
        entry = SiteImage(
            image=Image(name, "1.0", "https://example.org/image", size_bytes, sha512),
            infohash=parse_info(info_of(torrent)).infohash,
            size_bytes=size_bytes,
            piece_bytes=piece_bytes,
            sha512=sha512,
            origin=Origin(LIST_ID, "1", "/CN=endorser", "/CN=ca", sha512, size_bytes),
        )
        yield Made(entry, torrent, first)


def _fill_store(farm: Farm, made: list[Made]) -> None:
    for one in made:
        home = farm.state / "head" / "images" / one.entry.infohash
        home.mkdir(parents=True)
        one.write(home / IMAGE_FILE)
        (home / TORRENT_FILE).write_bytes(one.torrent)


def _fill_node(node: Node, made: list[Made]) -> None:
    """As after a pull of each."""
    state = node.directory / "state"
    state.mkdir(exist_ok=True)
    torrents = TorrentFiles(state / "torrents")

    def sparse(file: Path, size_bytes: int, *, mode: int) -> None:
        with file.open("xb") as out:
            out.truncate(size_bytes)
        file.chmod(mode)

    with mock.patch("agent.cache.file.allocate", sparse):
        store = FileStore(node.cache, 2 * sum(one.entry.size_bytes for one in made))
        cache = Cache(state_dir=state, stores=[store], clock=lambda: datetime.now(UTC))
        cache.recover()
        for one in made:
            entry = one.entry
            cache.desire(
                ImageVersion(
                    infohash=entry.infohash,
                    identifier=entry.identifier,
                    version=entry.version,
                    sha512=entry.sha512,
                    size_bytes=entry.size_bytes,
                    piece_bytes=entry.piece_bytes,
                )
            )
            cache.start_pull(entry.infohash)
            one.write(cache.volume(entry.infohash).path)
            cache.to_verifying(entry.infohash)
            cache.ready(entry.infohash)
            torrents.accept(info_of(one.torrent), entry)
            torrents.keep_layers(entry, one.torrent)


def _approve(farm: Farm, made: list[Made]) -> None:
    """As after an approval of each: the controller publishes what its database says."""
    now, first = datetime.now(UTC), made[0].entry.origin
    database = Database(sqlite_url(farm.state / "head" / "distrib.db"))
    with database.transaction() as session:
        session.add(
            AcceptedList(
                sha512=LIST_SHA512,
                identifier=first.list,
                version=first.list_version,
                endorser_dn=first.endorser_dn,
                endorser_ca=first.endorser_ca,
                created=now,
                expires=now + timedelta(days=30),
                accepted_at=now,
                accepted_by="benchmark",
            )
        )
        session.flush()
        session.add_all(_row(one.entry, now) for one in made)
        rise(session, CATALOGUE_CHANGES)
    database.close()


def _row(entry: SiteImage, now: datetime) -> ImageRow:
    origin = entry.origin
    return ImageRow(
        identifier=entry.identifier,
        version=entry.version,
        title=entry.title,
        list_sha512=LIST_SHA512,
        list_identifier=origin.list,
        list_version=origin.list_version,
        endorser_dn=origin.endorser_dn,
        endorser_ca=origin.endorser_ca,
        entry=entry_of(entry.image),
        endorsed_sha512=origin.sha512,
        endorsed_size_bytes=origin.size_bytes,
        state=ImageState.APPROVED,
        since=now,
        approved_at=now,
        infohash=entry.infohash,
        sha512=entry.sha512,
        size_bytes=entry.size_bytes,
        piece_bytes=entry.piece_bytes,
    )


def _ready(node: Node) -> int:
    report = ask(node.socket, "status")["report"]
    return sum(one["state"] == "ready" for one in report["images"])


def is_served(address: str, entry: SiteImage) -> bool:
    """Whether the agent at ``address`` answers a handshake (BEP 3, BEP 52) for the image.

    Asked from its own address: that has a place in the farm."""
    hello = b"\x13BitTorrent protocol" + bytes(7) + b"\x10"
    hello += bytes.fromhex(entry.infohash)[:20] + b"-BM0000-" + os.urandom(12)
    try:
        with socket.create_connection(
            (address, SWARM_PORT), timeout=5, source_address=(address, 0)
        ) as peer:
            peer.sendall(hello)
            return peer.recv(1) == hello[:1]
    except OSError:
        return False


def _count(log: Path, what: str) -> int:
    return sum(what in line for line in log.read_text("utf-8", "replace").splitlines())


def _settle(processes: dict[str, int]) -> None:
    """Until nobody has done anything to speak of for a while: torrents are opened one by one."""
    quiet_s, before = 0.0, 0.0

    def at_rest() -> bool:
        nonlocal quiet_s, before
        now = sum(_cpu_s(pid) for pid in processes.values())
        quiet_s = quiet_s + 1.0 if now - before < 0.2 else 0.0
        before = now
        return quiet_s >= SETTLED_S

    eventually("at rest", at_rest, limit_s=120, every_s=1.0)


def _children_of(pid: int) -> dict[str, int]:
    """The parts of `distrib up`, by what they are called with; itself is "up"."""
    found = {"up": pid}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text("ascii").split():
            words = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
            for part in ("mosquitto", "controller", "seeder"):
                if any(Path(word).name == part for word in words):
                    found[part] = int(child)
    return found


def _watched(processes: dict[str, int], seconds: float) -> dict[str, Load]:
    before = {name: _cpu_s(pid) for name, pid in processes.items()}
    time.sleep(seconds)
    return {
        name: Load(
            rss_mb=_memory_mb(pid, "VmRSS"),
            most_mb=_memory_mb(pid, "VmHWM"),
            cpu_percent=round(100 * (_cpu_s(pid) - before[name]) / seconds, 2),
        )
        for name, pid in processes.items()
    }


def _cpu_s(pid: int) -> float:
    """User and system time, of all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def _memory_mb(pid: int, which: str) -> float:
    """A line of proc(5), /proc/PID/status, in millions of bytes."""
    lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith(which))
    return round(kib * 1024 / 1e6, 1)
