"""Writable instances of sealed volumes, as files: a directory per lease.

``root.raw`` is a reflink copy where the file system can make one, else ``root.qcow2`` an overlay
over the volume; ``scratch.raw`` an allocated raw file; ``instance.json`` what was reserved. A
directory is filled under the name ``<lease>.new`` and renamed: an instance is whole or not there.

As a block device, where one is asked for, ``root.raw`` is attached to a loop device with direct
I/O, and ``root.block`` is the link to it that stays the same when it has to be attached again.
Where the file system makes no reflink copies it is then a whole copy, allocated and counted so.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from typing import Any, Final

import structlog

from agent.cache import durable, extents, loops, roots
from agent.cache.overruns import Overrun
from agent.cache.roots import SECTOR_BYTES, allocate
from agent.cache.store import Instance, Volume
from distrib.errors import Conflict, DistribError, StorageFailed

log = structlog.get_logger(__name__)

_LEASE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_DESCRIPTION: Final = "instance.json"
_RAW: Final = "root.raw"
_OVERLAY: Final = "root.qcow2"
_BLOCK: Final = "root.block"
_SCRATCH: Final = "scratch.raw"


@dataclass(frozen=True)
class _Described:
    instance: Instance
    cow_bytes: int
    scratch_bytes: int


def give_to(instance: Instance, uid: int) -> None:
    """Give an instance's files to a user, who alone may open them. Raises StorageFailed."""
    with durable.storage_errors("giving away", instance.path):
        for path in filter(None, (instance.path, instance.scratch)):
            # Only a block device is named by a link, and by one of our own making.
            os.chown(path, uid, -1, follow_symlinks=instance.block)
            path.chmod(0o600)
        for home in (instance.path.parent, instance.path.parent.parent):
            home.chmod(stat.S_IMODE(home.stat().st_mode) | 0o111)


class Instances:
    """A directory of instances. ``lock`` is its store's: ``make`` takes it, except while an
    instance is filled; the others are called under it.

    What is there is read once and then remembered: with many instances the reading of all, for
    each new one, would take longer than making it."""

    def __init__(
        self, root: Path, lock: RLock, *, reflink: bool = True, tool_timeout_s: float = 60.0
    ) -> None:
        self._root = root
        self._lock = lock
        self._making: dict[str, _Described] = {}
        self._there: dict[str, _Described] = {}
        self._reflink = reflink
        self._tool_timeout_s = tool_timeout_s
        durable.make_directory(root)
        for leftover in [*root.glob("*.new"), *root.glob("*.gone")]:
            durable.remove_directory(leftover)
        for home in sorted(root.iterdir()):
            found = _read(home) if _LEASE.fullmatch(home.name) else None
            if found is not None:
                self._there[home.name] = found
        self.sweep()
        self._attach_again()

    @property
    def root(self) -> Path:
        return self._root

    def make(
        self,
        volume: Volume,
        lease: str,
        *,
        cow_bytes: int,
        scratch_bytes: int,
        check_room: Callable[[int], None],
        block: bool = False,
    ) -> Instance:
        """Make an instance; the same one when the lease has it. It counts from ``check_room`` on.
        ``block``: as a block device.

        Raises Conflict, NoSpace, StorageFailed or ToolMissing, and then leaves nothing behind."""
        home = self._home(lease)
        planned = _Described(
            Instance(lease, volume.infohash, home / _RAW, "raw", block, None),
            cow_bytes,
            scratch_bytes,
        )
        with self._lock:
            there = self._existing(home, volume)
            if there is not None:
                return there
            check_room(cow_bytes + scratch_bytes)
            self._making[lease] = planned
        new = home.with_name(f"{lease}.new")
        try:
            for leftover in (new, home):  # a directory without a description is half removed
                durable.remove_directory(leftover)
            with durable.storage_errors("making the directory", new):
                new.mkdir()
            try:
                self._fill(new, volume, planned, check_room)
                with durable.storage_errors("naming", home):
                    new.rename(home)
                    durable.fsync_directory(self._root)
                if block:
                    self._attach(home)
                made = self._made(home)
            except BaseException:
                durable.remove_directory(new)
                with self._lock:
                    self.drop(lease)
                raise
        finally:
            with self._lock:
                del self._making[lease]
        return made.instance

    def _existing(self, home: Path, volume: Volume) -> Instance | None:
        """The lease's instance, if it has one. Raises Conflict when none can be made."""
        there = self._there.get(home.name)
        if there is not None and there.instance.infohash == volume.infohash:
            return there.instance
        if there is not None or home.name in self._making:
            raise Conflict(
                f"lease {home.name} has an instance of another image, or one is being made",
                hint="release the lease",
                lease=home.name,
            )
        if not volume.sealed:
            raise Conflict(
                f"volume {volume.infohash} is not sealed: no instance of it can be made",
                hint="wait until the image is ready",
                infohash=volume.infohash,
            )
        return None

    def _fill(
        self, new: Path, volume: Volume, planned: _Described, check_room: Callable[[int], None]
    ) -> None:
        """Make the files of an instance, its description last."""
        reflinked = self._reflink and not volume.block and roots.clone(volume.path, new / _RAW)
        if reflinked:
            with durable.storage_errors("sizing", new):
                os.truncate(new / _RAW, roots.whole_sectors(volume.size_bytes))
        elif planned.instance.block:
            planned = self._grown(planned, roots.whole_sectors(volume.size_bytes), check_room)
            roots.copy(volume, new / _RAW)
        else:
            planned = replace(planned, instance=replace(planned.instance, format="qcow2"))
            roots.overlay(volume, new / _OVERLAY, timeout_s=self._tool_timeout_s)
        if planned.scratch_bytes > 0:
            allocate(new / _SCRATCH, planned.scratch_bytes, mode=0o600)
        described = {
            "v": 1,
            "lease": planned.instance.lease,
            "infohash": volume.infohash,
            "format": planned.instance.format,
            "block": planned.instance.block,
            "cow_bytes": planned.cow_bytes,
            "scratch_bytes": planned.scratch_bytes,
        }
        durable.write(new / _DESCRIPTION, json.dumps(described).encode())

    def _made(self, home: Path) -> _Described:
        """Remember an instance, as it is on disk. Raises StorageFailed."""
        found = _read(home)
        if found is None:
            raise StorageFailed(
                f"{home} was made and cannot be read back",
                hint="look at the health of the disk",
                path=str(home),
            )
        with self._lock:
            self._there[home.name] = found
        return found

    def _grown(
        self, planned: _Described, cow_bytes: int, check_room: Callable[[int], None]
    ) -> _Described:
        """A plan that counts for more. Raises NoSpace."""
        with self._lock:
            check_room(max(0, cow_bytes - planned.cow_bytes))
            planned = replace(planned, cow_bytes=max(cow_bytes, planned.cow_bytes))
            self._making[planned.instance.lease] = planned
        return planned

    def all(self) -> tuple[Instance, ...]:
        """All instances that are there."""
        return tuple(one.instance for one in self._known())

    def drop(self, lease: str) -> None:
        """Remove the lease's instance; nothing when there is none. Raises StorageFailed."""
        home = self._home(lease)
        gone = home.with_name(f"{lease}.gone")
        durable.remove_directory(gone)
        if home.is_dir():
            self._detach(home)
            with durable.storage_errors("removing", home):
                home.rename(gone)
            self._there.pop(lease, None)
            durable.remove_directory(gone)
        self._there.pop(lease, None)

    # Block devices ------------------------------------------------------------------------------

    def leftovers(self) -> tuple[str, ...]:
        """Loop devices over our files that no instance has."""
        with self._lock:
            return tuple(str(one.device) for one in self._strays())

    def sweep(self) -> tuple[str, ...]:
        """Detach them. Returns those that were; what cannot be detached is logged."""
        with self._lock:
            swept = []
            for one in self._strays():
                try:
                    loops.give_back(one.device)
                    loops.detach(one.device)
                    swept.append(str(one.device))
                except (DistribError, OSError) as error:
                    log.warning("loop-not-detached", device=str(one.device), why=str(error))
            return tuple(swept)

    def _strays(self) -> list[loops.Loop]:
        blocks = {
            (self._root / one.instance.lease / _RAW).resolve()
            for one in self._counted()
            if one.instance.block
        }
        return [x for x in loops.attached(self._root) if x.gone or x.backing not in blocks]

    def _attach(self, home: Path) -> None:
        """The device, and the link to it that is the instance's name. Raises StorageFailed."""
        device = loops.attach(home / _RAW)
        link = home / _BLOCK
        with durable.storage_errors("linking", link):
            link.unlink(missing_ok=True)
            link.symlink_to(device)

    def _attach_again(self) -> None:
        """After a boot the devices are gone, and their numbers may be others'."""
        for one in self._known():
            if one.instance.block:
                try:
                    self._attach(self._root / one.instance.lease)
                except DistribError as error:
                    log.warning("loop-not-attached", lease=one.instance.lease, why=error.message)

    def _detach(self, home: Path) -> None:
        if not (home / _BLOCK).is_symlink():
            return
        device = loops.over(home / _RAW)
        if device is not None:
            with durable.storage_errors("taking back", device):
                loops.give_back(device)
            loops.detach(device)

    def stands_on(self, infohash: str) -> tuple[str, ...]:
        """The leases whose instances stand on a volume."""
        found = (one.instance for one in self._counted())
        return tuple(one.lease for one in found if one.infohash == infohash)

    def used_bytes(self) -> int:
        """What the instances may take: the reserved copy-on-write and scratch bytes, or what an
        overlay has grown to where that is more.

        A reflink copy counts as reserved: telling its own bytes from those that it shares takes a
        walk over its extents (``overruns``)."""
        return sum(
            max(one.cow_bytes, _overlay_bytes(one.instance)) + one.scratch_bytes
            for one in self._counted()
        )

    def overruns(self) -> tuple[Overrun, ...]:
        """Those that have outgrown their room. Walks over the extents of reflink copies."""
        found = []
        for one in self._known():
            used_bytes = _overlay_bytes(one.instance)
            if one.instance.format == "raw":
                try:
                    used_bytes = extents.own_bytes(self._root / one.instance.lease / _RAW)
                except OSError:
                    continue  # dropped meanwhile
            if used_bytes > one.cow_bytes:
                found.append(Overrun(one.instance.lease, one.cow_bytes, used_bytes))
        return tuple(found)

    def refuse_if_stood_on(self, infohash: str) -> None:
        """Raise Conflict when an instance stands on the volume."""
        leases = self.stands_on(infohash)
        if leases:
            raise Conflict(
                f"volume {infohash} carries the instances of {', '.join(leases)}",
                hint="release these leases first",
                infohash=infohash,
            )

    def _home(self, lease: str) -> Path:
        if not _LEASE.fullmatch(lease):
            raise ValueError(f"not a lease: {lease!r}")
        return self._root / lease

    def _known(self) -> list[_Described]:
        with self._lock:
            return [self._there[lease] for lease in sorted(self._there)]

    def _counted(self) -> list[_Described]:
        """What is there and what is being made."""
        with self._lock:
            return list((self._making | self._there).values())


def _read(home: Path) -> _Described | None:
    try:
        return _described(home, json.loads((home / _DESCRIPTION).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _described(home: Path, found: dict[str, Any]) -> _Described:
    block = bool(found.get("block", False))
    raw = found["format"] == "raw"
    scratch_bytes = int(found["scratch_bytes"])
    instance = Instance(
        lease=home.name,
        infohash=str(found["infohash"]),
        path=home / (_BLOCK if block else _RAW if raw else _OVERLAY),
        format="raw" if raw else "qcow2",
        block=block,
        scratch=home / _SCRATCH if scratch_bytes > 0 else None,
    )
    return _Described(instance, int(found["cow_bytes"]), scratch_bytes)


def _overlay_bytes(instance: Instance) -> int:
    if instance.format != "qcow2":
        return 0
    try:
        return instance.path.stat().st_blocks * SECTOR_BYTES
    except OSError:
        return 0
