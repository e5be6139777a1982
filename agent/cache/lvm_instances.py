"""Instances of store ``lvm``: a thick snapshot, and a scratch disk where one is asked for.

The scratch disk is made and zeroed first, the snapshot last, with tags that say what belongs to
it: an instance is there when its snapshot is. Removal takes the snapshot first.

``wipe`` = ``discard`` lets LVM discard what it frees; ``zero`` splits snapshot and origin, renames
what a job wrote to ``distrib-gone-…`` and leaves the zeroing to ``sweep``, since it takes as long
as the disk needs; ``none`` leaves the bytes where they are until their extents are used again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import RLock
from typing import Final, Literal

import structlog

from agent.cache import blockdev, durable
from agent.cache.lvm_group import VolumeGroup
from agent.cache.lvm_inventory import (
    CHUNK_BYTES,
    COW_PREFIX,
    GONE_PREFIX,
    SCRATCH_PREFIX,
    Inventory,
    LogicalVolume,
    check_lease,
    made_snapshot,
    own_tags,
    tags,
)
from agent.cache.snapshots import SnapshotFill
from agent.cache.store import Instance
from distrib.errors import Conflict, DistribError, NoSpace, NotFound

log = structlog.get_logger(__name__)

Wipe = Literal["discard", "zero", "none"]

_LEAST_BYTES: Final = 16 * CHUNK_BYTES


class LvmInstances:
    """Used by ``LvmStore``, with its lock. ``check_room`` raises NoSpace where so many bytes more
    do not fit."""

    def __init__(
        self,
        group: VolumeGroup,
        lock: RLock,
        *,
        wipe: Wipe,
        check_room: Callable[[Inventory, int], None],
    ) -> None:
        self._group = group
        self._lock = lock
        self._wipe = wipe
        self._check_room = check_room
        self._making: dict[str, tuple[str, int]] = {}

    @property
    def promised_bytes(self) -> int:
        """Room of snapshots that are about to be made."""
        return sum(room_bytes for _, room_bytes in self._making.values())

    def being_made(self, infohash: str) -> tuple[str, ...]:
        """The leases whose instances of a volume are being made."""
        return tuple(lease for lease, (of, _) in self._making.items() if of == infohash)

    def of(self, snapshot: LogicalVolume) -> Instance:
        lease = snapshot.tag("lease")
        scratch = self._group.device(SCRATCH_PREFIX + lease)
        return Instance(
            lease=lease,
            infohash=snapshot.tag("infohash"),
            path=self._group.device(snapshot.name),
            format="raw",
            block=True,
            scratch=scratch if snapshot.number_of("scratch") else None,
        )

    def make(
        self, origin: LogicalVolume, lease: str, *, cow_bytes: int, scratch_bytes: int
    ) -> Instance:
        """Raises Conflict, NoSpace or StorageFailed, and then leaves nothing behind."""
        name, scratch = COW_PREFIX + check_lease(lease), SCRATCH_PREFIX + lease
        with self._lock:
            found = self._group.recent()
            there = found.find(name)
            if there is not None and there.tag("infohash") == origin.tag("infohash"):
                return self.of(there)
            if there is not None or lease in self._making:
                raise Conflict(
                    f"lease {lease} has an instance of another image, or one is being made",
                    hint="release the lease",
                    lease=lease,
                )
            # More than it can ever need, LVM would take off again.
            room_bytes = min(
                found.rounded(max(cow_bytes, _LEAST_BYTES)),
                found.useful_cow_bytes(origin.size_bytes),
            )
            scratch_room = found.rounded(scratch_bytes)
            self._check_room(found, room_bytes + scratch_room)
            self._making[lease] = (origin.tag("infohash"), room_bytes)
            try:
                if scratch_bytes:
                    self._make_scratch(scratch, lease, scratch_room)
            except BaseException:
                del self._making[lease]
                raise
        try:
            if scratch_bytes:
                self._zero(scratch)
            with self._lock:
                said: dict[str, str | int] = {
                    "lease": lease,
                    "infohash": origin.tag("infohash"),
                    "cow": cow_bytes,
                    "scratch": scratch_bytes,
                }
                arguments = ["--snapshot", "--name", name, "--size", f"{room_bytes}b"]
                arguments += ["--chunksize", f"{CHUNK_BYTES}b", "--setactivationskip", "y"]
                arguments += ["--ignoreactivationskip", "--permission", "rw", *tags(**said)]

                def then(found: Inventory) -> Inventory:
                    number = blockdev.number(self._group.device(name))
                    return found.with_volume(
                        made_snapshot(name, origin.name, room_bytes, own_tags(**said), number)
                    )

                self._group.create(*arguments, on=self._group.lv(origin.name), then=then)
                made = self._group.recent().find(name)
        except BaseException:
            with self._lock, suppress(DistribError):
                self._making.pop(lease, None)
                self._drop(lease)
            raise
        finally:
            with self._lock:
                self._making.pop(lease, None)
        if made is None:
            raise NotFound(f"{self._group.lv(name)} was made and is not there", hint="see `lvs -a`")
        return self.of(made)

    def drop(self, lease: str) -> None:
        """Remove the lease's instance; nothing when there is none. Raises StorageFailed."""
        check_lease(lease)
        with self._lock:
            self._drop(lease)

    def snapshots(self) -> tuple[SnapshotFill, ...]:
        with self._lock:
            found = self._group.look()
        return tuple(self._fill(lv, found) for lv in found.snapshots)

    def extend(self, lease: str, *, limit_bytes: int) -> SnapshotFill:
        with self._lock:
            found = self._group.look()
            there = found.find(COW_PREFIX + check_lease(lease))
            if there is None:
                raise NotFound(f"lease {lease} has no snapshot", hint="see `distrib-agent leases`")
            origin = found.find(there.origin)
            useful = found.useful_cow_bytes(origin.size_bytes) if origin else limit_bytes
            wanted = min(found.rounded(there.size_bytes * 3 // 2), limit_bytes, useful)
            by_bytes = wanted // found.extent_bytes * found.extent_bytes - there.size_bytes
            if by_bytes <= 0:
                raise NoSpace(
                    f"the snapshot of lease {lease} has {there.size_bytes} bytes, and may have "
                    f"{limit_bytes}",
                    hint="ask for more room with the lease, or raise cache.lvm.extend_limit_bytes",
                    lease=lease,
                    free_bytes=0,
                )
            self._check_room(found, by_bytes)
            with _owner_kept(self._group.device(there.name)):
                self._group.extend(there.name, by_bytes)
            again = self._group.recent()
            grown = again.find(there.name)
            return self._fill(grown or there, again)

    def abandoned(self, found: Inventory) -> tuple[LogicalVolume, ...]:
        """Parts of instances that are not there, and are not being made."""
        return tuple(lv for lv in found.half_made if lv.tag("lease") not in self._making)

    def remove_half_made(self) -> None:
        """At a start: what an interrupted making or removal left."""
        with self._lock:
            for lv in self.abandoned(self._group.recent()):
                try:
                    self._discard(lv)
                except DistribError as error:
                    log.warning("lvm-not-removed", what=lv.name, why=error.message)

    def sweep(self) -> tuple[str, ...]:
        """Remove what was left, and zero and remove what is to be wiped."""
        self.remove_half_made()
        with self._lock:
            gone = self._group.recent().gone
        removed = []
        for lv in gone:
            try:
                with self._lock:
                    if not lv.active:
                        self._group.activate(lv.name)
                self._zero(lv.name)
                with self._lock:
                    self._group.run("lvremove", self._group.lv(lv.name))
                removed.append(str(self._group.device(lv.name)))
            except DistribError as error:
                log.warning("lvm-not-wiped", what=lv.name, why=error.message)
        return tuple(removed)

    # Inside the lock ------------------------------------------------------------------------------

    def _make_scratch(self, name: str, lease: str, room_bytes: int) -> None:
        leftover = self._group.recent().find(name)
        if leftover is not None:
            self._discard(leftover)
        arguments = ["--type", "linear", "--name", name, "--size", f"{room_bytes}b"]
        arguments += ["--setautoactivation", "n", "--zero", "n", "--wipesignatures", "n"]
        self._group.create(*arguments, *tags(lease=lease), on=self._group.name)

    def _drop(self, lease: str) -> None:
        found = self._group.recent()
        for name in (COW_PREFIX + lease, SCRATCH_PREFIX + lease):
            there = found.find(name)
            if there is not None and there.ours:
                self._discard(there)

    def _discard(self, lv: LogicalVolume) -> None:
        """Take away what a job wrote, as ``wipe`` says."""
        path = self._group.lv(lv.name)
        if self._wipe == "zero":
            if lv.origin:
                self._group.run("lvconvert", "--splitsnapshot", path)
            gone = GONE_PREFIX + lv.name.removeprefix("distrib-")
            self._group.run("lvrename", self._group.name, lv.name, gone)
        else:
            self._group.run(
                "lvremove",
                path,
                issue_discards=self._wipe == "discard",
                then=lambda found: found.without_volume(lv),
            )

    def _zero(self, name: str) -> None:
        device = self._group.device(name)
        fd = blockdev.open_device(device, write=True, alone=True)
        try:
            with durable.storage_errors("zeroing", device):
                blockdev.zero_tail(fd, 0)
                os.fsync(fd)
        finally:
            os.close(fd)

    def _fill(self, lv: LogicalVolume, found: Inventory) -> SnapshotFill:
        origin = found.find(lv.origin)
        return SnapshotFill(
            lease=lv.tag("lease"),
            infohash=lv.tag("infohash"),
            cow_bytes=lv.size_bytes,
            percent=100.0 if lv.invalid else lv.fill_percent or 0.0,
            overflowed=lv.invalid,
            safe=origin is not None and lv.size_bytes >= found.useful_cow_bytes(origin.size_bytes),
        )


class _owner_kept:  # noqa: N801 - reads as a statement
    """udev gives a device's node its rules' owner whenever its table changes."""

    def __init__(self, device: Path) -> None:
        self._device = device

    def __enter__(self) -> None:
        self._before = self._device.stat()

    def __exit__(self, *_: object) -> None:
        with durable.storage_errors("giving back", self._device):
            os.chown(self._device, self._before.st_uid, self._before.st_gid)
            self._device.chmod(self._before.st_mode & 0o7777)
