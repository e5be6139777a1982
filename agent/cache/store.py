"""The protocol between the cache and what holds its bytes (docs/formats/protocols.md)."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable


@dataclass(frozen=True)
class Space:
    """Own bytes of a store: never what other services use."""

    capacity_bytes: int
    used_bytes: int

    @property
    def free_bytes(self) -> int:
        return max(0, self.capacity_bytes - self.used_bytes)


@dataclass(frozen=True)
class Volume:
    """Room for one image version. ``path`` is what a launcher opens; ``size_bytes`` the image's
    size, or the size of the room where the store cannot know the image's (after a restart)."""

    infohash: str
    path: Path
    size_bytes: int
    block: bool
    sealed: bool


@dataclass(frozen=True)
class WriteTarget:
    """Where libtorrent writes: ``directory`` holds ``image.raw`` (a file, or a link to a device).

    ``backend`` is libtorrent's disk backend; the descriptor ``fd`` is open for reading and writing
    for the life of the context, and is what to fsync."""

    directory: Path
    backend: Literal["pread", "posix"]
    fd: int


@dataclass(frozen=True)
class Instance:
    """A job's own writable view of a volume."""

    lease: str
    infohash: str
    path: Path
    format: Literal["raw", "qcow2"]
    block: bool
    scratch: Path | None


@runtime_checkable
class Store(Protocol):
    """Gives and takes volumes. Calls block (use a worker thread) and are idempotent.

    Invariants: a sealed volume is never written; removing a volume that has an instance is refused
    (``Conflict``); space is thick: once reserved, writing inside a volume cannot run out of space.
    """

    @property
    def name(self) -> str:
        """The store's name in settings, records and reports."""
        ...

    @property
    def volume_per_device(self) -> bool:
        """True where a volume takes a whole device, however small its image: one evicted volume
        makes room for one new one, and instances take other room than volumes."""
        ...

    def space(self) -> Space:
        """Capacity (the quota) and own bytes in use, volumes and instances together."""
        ...

    def check_room(self, size_bytes: int, *, without: Collection[str] = ()) -> None:
        """Raise NoSpace (or TargetTooSmall) when ``reserve`` of so many bytes would.

        ``without`` names volumes to count as removed: whether evicting them would help. The
        error's id ``free_bytes`` says how much there is."""
        ...

    def reserve(self, infohash: str, size_bytes: int) -> Volume:
        """Take the room, all of it, before the first byte; the same volume when it exists.

        Raises NoSpace, TargetTooSmall or StorageFailed, and then leaves nothing behind."""
        ...

    def volumes(self) -> tuple[Volume, ...]:
        """All volumes that are there, whatever their state."""
        ...

    def writing(self, volume: Volume) -> AbstractContextManager[WriteTarget]:
        """Open an unsealed volume for libtorrent, which must have let go before it is left.

        Leaving it without an error flushes the descriptor: libtorrent does not see the errors of
        write-back, and only a descriptor that was open when they happened is sure to be told.
        Raises Conflict for a sealed volume, StorageFailed when it cannot be opened or flushed."""
        ...

    def seal(self, volume: Volume) -> Volume:
        """Flush, zero what lies past the image's end, make read-only, open once for reading.

        Raises StorageFailed when the bytes did not reach the disk."""
        ...

    def unseal(self, volume: Volume) -> Volume:
        """Make writable again, for repair. Raises Conflict while an instance stands on it."""
        ...

    def remove(self, volume: Volume) -> None:
        """Give the room back. Raises Conflict while an instance stands on it."""
        ...

    def make_instance(
        self, volume: Volume, lease: str, *, cow_bytes: int, scratch_bytes: int
    ) -> Instance:
        """A writable instance of a sealed volume, and a scratch disk if ``scratch_bytes`` > 0.

        Raises NoSpace before anything is made, Conflict when the volume is not sealed."""
        ...

    def instances(self) -> tuple[Instance, ...]:
        """All instances that are there."""
        ...

    def drop_instance(self, lease: str) -> None:
        """Remove the instance and scratch disk of a lease; nothing when there is none."""
        ...


@runtime_checkable
class BlockInstances(Protocol):
    """A store whose instances are files, and block devices where that is asked for."""

    def make_block_instance(
        self, volume: Volume, lease: str, *, cow_bytes: int, scratch_bytes: int
    ) -> Instance:
        """As ``Store.make_instance``; the instance is a block device."""
        ...
