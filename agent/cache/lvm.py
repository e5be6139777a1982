"""Store ``lvm``: a thick logical volume per image version, a thick snapshot per instance.

What there is, LVM's own metadata says (agent/cache/lvm_inventory.py): each step is one command,
which LVM commits as a whole, so an interrupted operation is finished by the next start or by doing
it again. ``<links>/<infohash>/image.raw`` is a link to the logical volume, for libtorrent; links
are made anew at a start.

**Seal.** Read-only in LVM's metadata and the tag ``distrib.sealed``, in one command, after the
tail past the image is zero and all is flushed. It outlives boots. Nobody can have written while
the kernel's read-only flag is set, which is looked at each time.

**Former bytes.** A new volume holds what its extents held before: nobody sees it until it is
sealed, and then all of it was written. A snapshot shows the image and what its own job wrote; the
kernel clears the notes of its copy-on-write store before it reads them. A scratch disk is zeroed
before it is given, whatever ``wipe`` says. ``wipe`` is about what stays on the disk after a job.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import RLock
from typing import Final

import structlog

from agent.cache import blockdev, durable
from agent.cache.lvm_group import VolumeGroup
from agent.cache.lvm_instances import LvmInstances, Wipe
from agent.cache.lvm_inventory import (
    SEALED,
    Inventory,
    LogicalVolume,
    check_infohash,
    image_name,
    tag,
    tags,
)
from agent.cache.lvmtools import LvmTools
from agent.cache.snapshots import SnapshotFill
from agent.cache.store import Instance, Space, Volume, WriteTarget
from distrib.errors import Conflict, DistribError, NoSpace, NotFound, StorageFailed
from distrib.swarm import IMAGE_FILE

log = structlog.get_logger(__name__)

_PROBE_BYTES: Final = 4096


class LvmStore:
    """Volumes in a volume group. Safe to call from several threads."""

    name: str = "lvm"
    volume_per_device: bool = False

    def __init__(
        self,
        vg: str,
        links_dir: Path,
        *,
        pvs: Sequence[Path] = (),
        capacity_bytes: int = 0,
        wipe: Wipe = "discard",
        tool_timeout_s: float = 60.0,
    ) -> None:
        """``pvs``: the only physical volumes that ours may lie on. ``capacity_bytes``: quota on
        own bytes; 0: what the group has. One process at a time.

        Finishes what was interrupted. Raises ConfigInvalid, ToolMissing or StorageFailed."""
        self._group = VolumeGroup(LvmTools.open(vg, pvs, timeout_s=tool_timeout_s))
        self._links = links_dir
        self._capacity_bytes = capacity_bytes
        self._lock = RLock()
        self._instances = LvmInstances(
            self._group, self._lock, wipe=wipe, check_room=self._check_free
        )
        durable.make_directory(links_dir)
        self._start()

    # Room -----------------------------------------------------------------------------------------

    def space(self) -> Space:
        found = self._group.recent()
        return Space(self._capacity(found), found.used_bytes)

    def check_room(self, size_bytes: int, *, without: Collection[str] = ()) -> None:
        with self._lock:
            found = self._group.recent()
            gone = frozenset(without)
            freed = sum(lv.size_bytes for lv in found.images if lv.tag("infohash") in gone)
            self._check_free(found, found.rounded(size_bytes), freed)

    def _capacity(self, found: Inventory) -> int:
        there = found.used_bytes + found.free_bytes
        return min(self._capacity_bytes, there) if self._capacity_bytes else there

    def _check_free(self, found: Inventory, need_bytes: int, freed_bytes: int = 0) -> None:
        """Raise NoSpace where so many bytes more do not fit."""
        promised = self._instances.promised_bytes
        free = self._capacity(found) - found.used_bytes - promised + freed_bytes
        if need_bytes > free:
            raise NoSpace(
                f"{need_bytes} bytes are needed, the cache uses {found.used_bytes} of the "
                f"{self._capacity(found)} that it may in volume group {found.vg}",
                hint=f"raise cache.lvm.capacity_bytes or extend {found.vg}, unpin or evict images,"
                " or end jobs",
                path=f"/dev/{found.vg}",
                need_bytes=need_bytes,
                free_bytes=max(0, free),
            )

    # Volumes --------------------------------------------------------------------------------------

    def reserve(self, infohash: str, size_bytes: int) -> Volume:
        if size_bytes <= 0:
            raise ValueError(f"a volume of {size_bytes} bytes")
        name = image_name(check_infohash(infohash))
        with self._lock:
            found = self._group.look()
            there = found.find(name)
            if there is not None:
                return self._reserved(there, size_bytes)
            room_bytes = found.rounded(size_bytes)
            self._check_free(found, room_bytes)
            try:
                # LVM clears the start, and signatures of whatever lay there before.
                said = tags(infohash=infohash, bytes=size_bytes)
                arguments = ["--type", "linear", "--name", name, "--size", f"{room_bytes}b"]
                arguments += ["--setautoactivation", "n", "--zero", "y", "--wipesignatures", "y"]
                self._group.create(*arguments, *said, on=self._group.name)
                self._link(infohash)
            except DistribError:
                with suppress(DistribError):
                    self._remove(name)
                raise
            return self._existing(infohash)

    def volumes(self) -> tuple[Volume, ...]:
        return tuple(self._volume(lv) for lv in self._group.recent().images)

    @contextmanager
    def writing(self, volume: Volume) -> Iterator[WriteTarget]:
        with self._lock:
            there = self._own(volume.infohash)
            if self._volume(there).sealed:
                raise Conflict(
                    f"volume {volume.infohash} is sealed: it is not written any more",
                    hint="unseal it for repair",
                    infohash=volume.infohash,
                )
            self._make_writable(there)
        path = self._path(volume.infohash)
        fd = blockdev.open_device(path, write=True, alone=True)
        try:
            yield WriteTarget(path.parent, "posix", fd)
            with durable.storage_errors("flushing", path):
                os.fsync(fd)
        finally:
            os.close(fd)

    def seal(self, volume: Volume) -> Volume:
        with self._lock:
            there = self._own(volume.infohash)
            if self._volume(there).sealed:
                return self._volume(there)
            self._make_writable(there)
        path = self._path(volume.infohash)
        fd = blockdev.open_device(path, write=True, alone=True)
        try:
            with durable.storage_errors("sealing", path):
                blockdev.zero_tail(fd, volume.size_bytes)
                os.fsync(fd)
                # So that what is read below comes from the disk.
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
        self._read_ends(volume.infohash, volume.size_bytes)
        with self._lock:
            said = ["--permission", "r", "--addtag", SEALED]
            self._group.run("lvchange", *said, self._group.lv(there.name))
            sealed = self._existing(volume.infohash)
        if not sealed.sealed:
            raise StorageFailed(
                f"{path} was made read-only, and the kernel still lets it be written",
                hint=f"see `lvs -o+lv_permissions {self._group.lv(there.name)}`",
                path=str(path),
            )
        self._read_ends(volume.infohash, volume.size_bytes)
        return sealed

    def unseal(self, volume: Volume) -> Volume:
        with self._lock:
            found = self._group.look()
            there = self._own(volume.infohash, found)
            self._refuse_if_stood_on(there, found)
            self._make_writable(there)
            return self._existing(volume.infohash)

    def remove(self, volume: Volume) -> None:
        name = image_name(check_infohash(volume.infohash))
        with self._lock:
            found = self._group.look()
            there = found.find(name)
            if there is not None and there.ours:
                # LVM would remove the snapshots with their origin.
                self._refuse_if_stood_on(there, found)
                self._remove(name)
            durable.remove_directory(self._links / volume.infohash)

    def label(self, infohash: str, labels: Mapping[str, str]) -> None:
        """Say in tags (``distrib.<key>=…``) what an operator asks of a volume, as its image,
        version and state. Nothing when the volume is not there. Raises StorageFailed."""
        with self._lock:
            there = self._group.recent().find(image_name(check_infohash(infohash)))
            if there is None or not there.ours:
                return
            wanted = {tag(key, value) for key, value in labels.items()}
            stale = {
                old for old in there.tags for key in labels if old.startswith(tag(key, ""))
            } - wanted
            # LVM adds before it deletes: a tag must not be in both.
            changes = [a for old in sorted(stale) for a in ("--deltag", old)]
            changes += [a for new in sorted(wanted - there.tags) for a in ("--addtag", new)]
            if changes:
                self._group.run("lvchange", *changes, self._group.lv(there.name))

    # Instances ------------------------------------------------------------------------------------

    def make_instance(
        self, volume: Volume, lease: str, *, cow_bytes: int, scratch_bytes: int
    ) -> Instance:
        with self._lock:
            there = self._own(volume.infohash)
            if not self._volume(there).sealed:
                raise Conflict(
                    f"volume {volume.infohash} is not sealed: no instance of it can be made",
                    hint="wait until the image is ready",
                    infohash=volume.infohash,
                )
        return self._instances.make(there, lease, cow_bytes=cow_bytes, scratch_bytes=scratch_bytes)

    def instances(self) -> tuple[Instance, ...]:
        return tuple(self._instances.of(lv) for lv in self._group.recent().snapshots)

    def drop_instance(self, lease: str) -> None:
        self._instances.drop(lease)

    def snapshots(self) -> tuple[SnapshotFill, ...]:
        """How full each snapshot is, from the kernel. Raises StorageFailed."""
        return self._instances.snapshots()

    def extend(self, lease: str, *, limit_bytes: int) -> SnapshotFill:
        """Let a snapshot grow by half, to no more than ``limit_bytes``. Raises NoSpace,
        NotFound or StorageFailed."""
        return self._instances.extend(lease, limit_bytes=limit_bytes)

    def leftovers(self) -> tuple[str, ...]:
        found = self._group.recent()
        there = {lv.tag("infohash") for lv in found.images}
        links = [home for home in self._links.iterdir() if home.name not in there]
        parts = (*found.gone, *self._instances.abandoned(found))
        return (*(str(self._group.device(lv.name)) for lv in parts), *map(str, links))

    def sweep(self) -> tuple[str, ...]:
        removed = list(self._instances.sweep())
        with self._lock:
            there = {lv.tag("infohash") for lv in self._group.look().images}
            for home in self._links.iterdir():
                if home.name not in there:
                    durable.remove_directory(home)
                    removed.append(str(home))
        return tuple(removed)

    # Looking --------------------------------------------------------------------------------------

    def _own(self, infohash: str, found: Inventory | None = None) -> LogicalVolume:
        there = (found or self._group.recent()).find(image_name(check_infohash(infohash)))
        if there is None or not there.ours:
            raise NotFound(
                f"volume {infohash} is not in volume group {self._group.name}",
                hint="see `distrib-agent status`",
                infohash=infohash,
            )
        return there

    def _existing(self, infohash: str) -> Volume:
        return self._volume(self._own(infohash))

    def _volume(self, lv: LogicalVolume) -> Volume:
        return Volume(
            infohash=lv.tag("infohash"),
            path=self._path(lv.tag("infohash")),
            size_bytes=lv.number_of("bytes"),
            block=True,
            sealed=SEALED in lv.tags and lv.read_only and _kernel_read_only(lv),
        )

    def _reserved(self, there: LogicalVolume, size_bytes: int) -> Volume:
        """A volume that exists, for a repeated reserve."""
        path = self._group.lv(there.name)
        if not there.ours:
            raise Conflict(
                f"{path} is there and not ours",
                hint=f"`lvrename {path} {there.name.removeprefix('distrib-')[:16]}-foreign`",
                path=path,
            )
        if there.number_of("bytes") != size_bytes:
            raise Conflict(
                f"volume {path} has {there.number_of('bytes')} bytes, not {size_bytes}",
                hint="evict it first",
                path=path,
            )
        self._link(there.tag("infohash"))
        return self._volume(there)

    def _refuse_if_stood_on(self, there: LogicalVolume, found: Inventory) -> None:
        names = [lv.tag("lease") or self._group.lv(lv.name) for lv in found.on(there.name)]
        names += self._instances.being_made(there.tag("infohash"))
        if names:
            raise Conflict(
                f"volume {there.tag('infohash')} carries the instances of {', '.join(names)}",
                hint="release these leases first",
                infohash=there.tag("infohash"),
            )

    # Changing -------------------------------------------------------------------------------------

    def _make_writable(self, there: LogicalVolume) -> None:
        changes = []
        if SEALED in there.tags:
            changes += ["--deltag", SEALED]
        if there.read_only:  # LVM takes it for a fault to say so twice
            changes += ["--permission", "rw"]
        if changes:
            self._group.run("lvchange", *changes, self._group.lv(there.name))
        if not there.active:
            self._group.activate(there.name)

    def _remove(self, name: str) -> None:
        self._group.run("lvremove", self._group.lv(name))

    def _path(self, infohash: str) -> Path:
        return self._links / infohash / IMAGE_FILE

    def _link(self, infohash: str) -> None:
        path, device = self._path(infohash), self._group.device(image_name(infohash))
        durable.make_directory(path.parent)
        with durable.storage_errors("linking", path):
            if not path.is_symlink() or path.readlink() != device:
                path.unlink(missing_ok=True)
                path.symlink_to(device)
                durable.fsync_directory(path.parent)

    def _read_ends(self, infohash: str, size_bytes: int) -> None:
        """Open as a launcher would, and read the first and the last block."""
        path = self._path(infohash)
        with durable.storage_errors("reading", path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                for offset in (0, max(0, size_bytes - _PROBE_BYTES)):
                    os.pread(fd, min(_PROBE_BYTES, size_bytes), offset)
            finally:
                os.close(fd)

    def _start(self) -> None:
        """Links for what is there, and none else; everything of ours active."""
        found = self._group.look()
        there = {lv.tag("infohash") for lv in found.images}
        for home in list(self._links.iterdir()):
            if home.name not in there:
                durable.remove_directory(home)
        for infohash in there:
            self._link(infohash)
        inactive = [lv for lv in (*found.images, *found.snapshots) if not lv.active]
        if inactive:
            try:
                self._group.activate(*(lv.name for lv in inactive))
            except StorageFailed as error:
                # They count as not sealed, and doctor says why.
                log.warning("lvm-not-activated", why=error.message, hint=error.hint)
        self._instances.remove_half_made()


def _kernel_read_only(lv: LogicalVolume) -> bool:
    try:
        return Path(f"/sys/dev/block/{lv.number}/ro").read_text().strip() == "1"
    except OSError:
        return False
