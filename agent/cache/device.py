"""Store ``device``: a fixed pool of block devices, a whole one for each volume.

``<links>/<infohash>/image.raw`` is a link to the device, ``volume.json`` beside it says what the
device holds. A link that does not lead into the pool is not followed and not a volume. The
directory is made as ``<infohash>.new`` and goes as ``<infohash>.gone``: a volume is whole or not
there. Device nodes are never removed. Sealing needs CAP_SYS_ADMIN.

**Writing.** libtorrent's posix backend, the only one that can write into a device, opens and
closes it for each block; closing the last descriptor of a device flushes and drops its page
cache, so ours is held all the while, and only ours is told of write-back errors.

**Seal.** The kernel's read-only flag, and ``sealed`` in ``volume.json``, written last. The flag
does not outlive a boot, and a device's name may mean another device then: at the first start
after a boot a sample of the blocks is compared before the flag is set anew. A device that lost
its flag within a boot was opened to writers by somebody, and is not sealed any more.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from agent.cache import blockdev, durable
from agent.cache.file import read_ends
from agent.cache.holders import current_boot_id
from agent.cache.homes import HomeStore
from agent.cache.instances import Instances
from agent.cache.pool import DevicePool, sample
from agent.cache.roots import free_on_disk_bytes, full_disk
from agent.cache.store import Space, Volume, WriteTarget
from distrib.errors import Conflict, NoSpace, NotFound, StorageFailed
from distrib.swarm import IMAGE_FILE

_DESCRIPTION: Final = "volume.json"


@dataclass(frozen=True)
class _Described:
    infohash: str
    size_bytes: Annotated[int, Field(gt=0)]
    sealed: bool = False
    boot_id: str = ""
    sample: str = ""
    v: Literal[1] = 1


_ADAPTER: Final = TypeAdapter(_Described)


class DeviceStore(HomeStore):
    """Volumes on block devices. Safe to call from several threads."""

    name: str = "device"
    volume_per_device: bool = True

    def __init__(
        self,
        devices: Sequence[Path],
        links_dir: Path,
        *,
        instances_dir: Path,
        instances_capacity_bytes: int,
        boot_id: str | None = None,
        tool_timeout_s: float = 60.0,
    ) -> None:
        """``devices`` by names that last (``/dev/disk/by-id/…``); one process at a time.

        Instances and scratch disks are files in ``instances_dir``, with a quota of their own.
        Finishes what was interrupted. Raises ConfigInvalid for what is no device or is named
        twice, StorageFailed for a device that others use."""
        self._boot_id = current_boot_id() if boot_id is None else boot_id
        self._pool = DevicePool(devices)
        self._instances_capacity_bytes = instances_capacity_bytes
        lock = RLock()
        instances = Instances(instances_dir, lock, reflink=False, tool_timeout_s=tool_timeout_s)
        super().__init__(links_dir, instances, lock)
        for home in self._homes():
            self._seal_anew(home)

    def space(self) -> Space:
        """Whole devices, and the instances' files."""
        with self._lock:
            taken = sum(self._pool.sizes[device] for device in self._taken().values())
            return Space(
                sum(self._pool.sizes.values()) + self._instances_capacity_bytes,
                taken + self._instances.used_bytes(),
            )

    def check_room(self, size_bytes: int, *, without: Collection[str] = ()) -> None:
        with self._lock:
            self._choose(size_bytes, without)

    def reserve(self, infohash: str, size_bytes: int) -> Volume:
        if size_bytes <= 0:
            raise ValueError(f"a volume of {size_bytes} bytes")
        home = self._home(infohash)
        with self._lock:
            there = self._read(home)
            if there is not None:
                return self._reserved(there, size_bytes)
            device = self._choose(size_bytes, ())
            os.close(blockdev.open_device(device, alone=True))
            blockdev.set_read_only(device, False)
            with self._making(home) as new:
                self._describe(new, _Described(infohash, size_bytes))
                with durable.storage_errors("naming", home):
                    (new / IMAGE_FILE).symlink_to(device)
            return self._existing(infohash)

    @contextmanager
    def writing(self, volume: Volume) -> Iterator[WriteTarget]:
        self._unsealed(volume.infohash)
        home = self._home(volume.infohash)
        device = self._device_of(home)
        blockdev.set_read_only(device, False)  # an interrupted seal may have got as far
        fd = blockdev.open_device(device, write=True, alone=True)
        try:
            yield WriteTarget(home, "posix", fd)
            with durable.storage_errors("flushing", device):
                os.fsync(fd)
        finally:
            os.close(fd)

    def seal(self, volume: Volume) -> Volume:
        there = self._existing(volume.infohash)
        if there.sealed:
            return there
        home = self._home(volume.infohash)
        device = self._device_of(home)
        blockdev.set_read_only(device, False)
        fd = blockdev.open_device(device, write=True, alone=True)
        try:
            with durable.storage_errors("sealing", device):
                blockdev.zero_tail(fd, volume.size_bytes)
                os.fsync(fd)
                # So that what is read below comes from the device.
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
        blockdev.set_read_only(device, True)
        with durable.storage_errors("reading", device):
            read_ends(home / IMAGE_FILE, volume.size_bytes)
            seen = sample(device, volume.size_bytes)
        self._describe(
            home, _Described(volume.infohash, volume.size_bytes, True, self._boot_id, seen)
        )
        return self._existing(volume.infohash)

    def unseal(self, volume: Volume) -> Volume:
        home = self._home(volume.infohash)
        with self._lock:
            self._instances.refuse_if_stood_on(volume.infohash)
            device = self._device_of(home)
            there = self._existing(volume.infohash)
            self._describe(home, _Described(volume.infohash, there.size_bytes))
            blockdev.set_read_only(device, False)
            return self._existing(volume.infohash)

    # The pool -----------------------------------------------------------------------------------

    def _choose(self, size_bytes: int, without: Collection[str]) -> Path:
        taken = {device for name, device in self._taken().items() if name not in without}
        return self._pool.choose(size_bytes, taken)

    def _check_instance_room(self, need_bytes: int) -> None:
        used = self._instances.used_bytes()
        if used + need_bytes > self._instances_capacity_bytes:
            raise NoSpace(
                f"{need_bytes} bytes are needed for an instance, the instances use {used} of the "
                f"{self._instances_capacity_bytes} that they may",
                hint="raise the instances' capacity, or end jobs",
                path=str(self._instances.root),
                need_bytes=need_bytes,
                free_bytes=max(0, self._instances_capacity_bytes - used),
            )
        if need_bytes > free_on_disk_bytes(self._instances.root):
            raise full_disk(self._instances.root, need_bytes)

    def _taken(self) -> dict[str, Path]:
        linked = ((home.name, self._linked(home)) for home in self._homes())
        return {name: device for name, device in linked if device is not None}

    # Directories --------------------------------------------------------------------------------

    def _linked(self, home: Path) -> Path | None:
        """The device that a directory links to, when it is one of the pool."""
        try:
            target = (home / IMAGE_FILE).readlink()
        except OSError:
            return None
        return target if target in self._pool.sizes else None

    def _device_of(self, home: Path) -> Path:
        device = self._linked(home)
        if device is None:
            raise NotFound(
                f"volume {home.name} is not on a device of the pool",
                hint="see `distrib-agent status`",
                infohash=home.name,
            )
        return device

    def _existing(self, infohash: str) -> Volume:
        home = self._home(infohash)
        self._device_of(home)
        found = self._read(home)
        assert found is not None  # noqa: S101 - it has a device
        return found

    def _reserved(self, there: Volume, size_bytes: int) -> Volume:
        """A volume that exists, for a repeated reserve."""
        home = self._home(there.infohash)
        described = self._described(home)
        if described is None and size_bytes <= there.size_bytes:
            self._describe(home, _Described(there.infohash, size_bytes))
            return self._existing(there.infohash)
        if there.size_bytes != size_bytes:
            raise Conflict(
                f"volume {there.infohash} has {there.size_bytes} bytes, not {size_bytes}",
                hint="evict it first",
                infohash=there.infohash,
            )
        return there

    def _read(self, home: Path) -> Volume | None:
        device = self._linked(home)
        if device is None:
            return None
        described = self._described(home)
        return Volume(
            infohash=home.name,
            path=home / IMAGE_FILE,
            size_bytes=described.size_bytes if described else self._pool.sizes[device],
            block=True,
            sealed=described is not None and self._is_sealed(described, device),
        )

    def _is_sealed(self, described: _Described, device: Path) -> bool:
        if not described.sealed or described.boot_id != self._boot_id:
            return False
        try:
            fd = blockdev.open_device(device)
        except StorageFailed:
            return False
        try:
            return blockdev.is_read_only(fd)
        finally:
            os.close(fd)

    def _described(self, home: Path) -> _Described | None:
        try:
            described = _ADAPTER.validate_json((home / _DESCRIPTION).read_bytes())
        except (OSError, ValueError):
            return None
        return described if described.infohash == home.name else None

    def _describe(self, home: Path, described: _Described) -> None:
        durable.replace(home / _DESCRIPTION, _ADAPTER.dump_json(described))

    def _seal_anew(self, home: Path) -> None:
        """After a boot: the flag again, where the device still holds what was sealed."""
        device, described = self._linked(home), self._described(home)
        if device is None or described is None or not described.sealed:
            return
        if described.boot_id == self._boot_id:
            return
        try:
            same = sample(device, described.size_bytes) == described.sample
        except OSError:
            same = False
        if not same:
            self._describe(home, _Described(described.infohash, described.size_bytes))
            return
        blockdev.set_read_only(device, True)
        self._describe(home, replace(described, boot_id=self._boot_id))

    def _clear(self, home: Path) -> None:
        device = self._linked(home)
        if device is not None:
            blockdev.set_read_only(device, False)
        durable.remove_directory(home)
