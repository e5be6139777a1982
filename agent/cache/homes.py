"""What stores have in common that keep a directory for each volume and instances as files.

``<volumes>/<infohash>/`` is made as ``<infohash>.new`` and goes as ``<infohash>.gone``: a volume
is whole or not there, and an interrupted operation is finished by the next start or by doing it
again. What a directory holds is the store's own.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Final

from agent.cache import durable
from agent.cache.instances import Instances
from agent.cache.overruns import Overrun
from agent.cache.store import Instance, Volume
from distrib.errors import Conflict, NotFound

_INFOHASH: Final = re.compile(r"[0-9a-f]{64}")


class HomeStore(ABC):
    """A directory for each volume, and ``Instances``."""

    def __init__(self, volumes_dir: Path, instances: Instances, lock: RLock) -> None:
        """Finishes what was interrupted."""
        self._volumes = volumes_dir
        self._instances = instances
        self._lock = lock
        durable.make_directory(volumes_dir)
        for leftover in [*volumes_dir.glob("*.new"), *volumes_dir.glob("*.gone")]:
            self._clear(leftover)
        for home in self._homes():
            durable.sweep(home)

    @abstractmethod
    def _read(self, home: Path) -> Volume | None:
        """The volume of a directory; None when it holds none."""

    @abstractmethod
    def _check_instance_room(self, need_bytes: int) -> None:
        """Raise NoSpace where an instance of so many bytes does not fit."""

    def _clear(self, home: Path) -> None:
        """Remove a directory that is no volume's any more."""
        durable.remove_directory(home)

    def volumes(self) -> tuple[Volume, ...]:
        return tuple(v for v in map(self._read, self._homes()) if v is not None)

    def remove(self, volume: Volume) -> None:
        home = self._home(volume.infohash)
        gone = home.with_name(f"{volume.infohash}.gone")
        with self._lock:
            self._instances.refuse_if_stood_on(volume.infohash)
            self._clear(gone)
            if home.is_dir():
                with durable.storage_errors("removing", home):
                    home.rename(gone)
                self._clear(gone)

    def make_instance(
        self, volume: Volume, lease: str, *, cow_bytes: int, scratch_bytes: int
    ) -> Instance:
        return self._instances.make(
            self._existing(volume.infohash),
            lease,
            cow_bytes=cow_bytes,
            scratch_bytes=scratch_bytes,
            check_room=self._check_instance_room,
        )

    def make_block_instance(
        self, volume: Volume, lease: str, *, cow_bytes: int, scratch_bytes: int
    ) -> Instance:
        """As ``make_instance``, and as a block device: a loop device with direct I/O."""
        return self._instances.make(
            self._existing(volume.infohash),
            lease,
            cow_bytes=cow_bytes,
            scratch_bytes=scratch_bytes,
            check_room=self._check_instance_room,
            block=True,
        )

    def overruns(self) -> tuple[Overrun, ...]:
        return self._instances.overruns()

    def leftovers(self) -> tuple[str, ...]:
        return self._instances.leftovers()

    def sweep(self) -> tuple[str, ...]:
        return self._instances.sweep()

    def instances(self) -> tuple[Instance, ...]:
        return self._instances.all()

    def drop_instance(self, lease: str) -> None:
        with self._lock:
            self._instances.drop(lease)

    @contextmanager
    def _making(self, home: Path) -> Iterator[Path]:
        """Fill the directory that is given; it is the volume's once the block has ended well."""
        new = home.with_name(f"{home.name}.new")
        for leftover in (new, home):
            durable.remove_directory(leftover)
        durable.make_directory(new)
        try:
            yield new
            with durable.storage_errors("naming", home):
                durable.fsync_directory(new)
                new.rename(home)
                durable.fsync_directory(self._volumes)
        except BaseException:
            durable.remove_directory(new)
            raise

    def _home(self, infohash: str) -> Path:
        if not _INFOHASH.fullmatch(infohash):
            raise ValueError(f"not an info-hash: {infohash!r}")
        return self._volumes / infohash

    def _homes(self) -> list[Path]:
        return [h for h in sorted(self._volumes.iterdir()) if _INFOHASH.fullmatch(h.name)]

    def _existing(self, infohash: str) -> Volume:
        found = self._read(self._home(infohash))
        if found is None:
            raise NotFound(
                f"volume {infohash} is not in the cache {self._volumes}",
                hint="see `distrib-agent status`",
                infohash=infohash,
            )
        return found

    def _unsealed(self, infohash: str) -> Volume:
        """The volume, which is to be written. Raises Conflict when it is sealed."""
        found = self._existing(infohash)
        if found.sealed:
            raise Conflict(
                f"volume {infohash} is sealed: it is not written any more",
                hint="unseal it for repair",
                infohash=infohash,
            )
        return found
