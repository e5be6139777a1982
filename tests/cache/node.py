"""A node's cache for the stories: the real one, small, with a clock to turn."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from agent.cache.cache import Cache
from agent.cache.file import FileStore
from agent.cache.holders import Holder, holder_of_pid
from agent.cache.leases import Lease
from agent.cache.records import ImageVersion, VolumeRecord
from agent.cache.store import Store
from distrib.bus.messages import State

MIB = 1 << 20


class Node:
    """A node with a cache of 10 MiB; ``restart`` is what an agent does after kill -9."""

    def __init__(self, tmp_path: Path, clock: Any) -> None:
        self.state_dir = tmp_path / "state"
        self.cache_dir = tmp_path / "cache"
        self.clock = clock
        self.seen: list[tuple[str, State]] = []
        self.restart()

    def restart(self, store: Store | None = None) -> None:
        self.store = store or FileStore(self.cache_dir, 10 * MIB)
        self.cache = Cache(
            state_dir=self.state_dir,
            stores=[self.store],
            clock=self.clock,
            low_watermark=0.5,
            on_change=lambda record: self.seen.append((record.version, record.state)),
        )
        self.recovery = self.cache.recover()

    def pull(self, image: ImageVersion, **wish: Any) -> VolumeRecord:
        """Want an image and bring it, all the way."""
        record = self.cache.desire(image, **wish)
        if record.state not in (State.RESERVED, State.PULLING):
            return record
        self.cache.start_pull(image.infohash)
        self.write(image)
        self.cache.to_verifying(image.infohash, fetched_bytes=image.size_bytes)
        return self.cache.ready(image.infohash)

    def write(self, image: ImageVersion, data: bytes = b"boot sector") -> None:
        with self.store.writing(self.cache.volume(image.infohash)) as target:
            os.pwrite(target.fd, data, 0)

    def lease(
        self, image: ImageVersion, holder: Holder | None = None, *, block: bool = False
    ) -> Lease:
        return self.cache.lease(
            image.infohash,
            holder=holder or holder_of_pid(os.getpid()),
            user="alice",
            cow_bytes=65536,
            block=block,
        )

    def state(self, image: ImageVersion) -> State:
        held = {one.record.infohash: one.state for one in self.cache.snapshot().holdings}
        return held.get(image.infohash, State.ABSENT)
