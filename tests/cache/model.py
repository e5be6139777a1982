"""A model of the cache, for ``test_cache_model``.

The model knows what was promised: who holds leases, what is wanted and pinned, and which bytes each
image has. After each step the cache, its files and its store must agree with it. Crashes are real:
a child does the operation and is killed before one of its steps on disk.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)

from agent.cache.cache import Cache
from agent.cache.device import DeviceStore
from agent.cache.file import FileStore
from agent.cache.holders import TimeHolder
from agent.cache.ledger import Ledger
from agent.cache.records import UNDER_WAY
from distrib.bus.messages import NodeReason, State
from distrib.errors import Conflict, DistribError, NoSpace, NotFound, NotReady, Revoked
from tests.cache.images import CAPACITY, COW, NUMBERS, byte, image
from tests.cache.killing import in_a_child


class CacheMachine(RuleBasedStateMachine):
    """Over store ``file``. Subclasses have other stores."""

    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.home = tempfile.TemporaryDirectory()
        self.root = Path(self.home.name)
        self.now = datetime(2026, 3, 1, tzinfo=UTC)
        self.held: dict[str, tuple[str, datetime]] = {}
        self.desired: set[str] | None = None
        self.damaged: set[str] = set()
        self.evicted: list[str] = []
        self.open()

    @initialize(
        begun=st.dictionaries(NUMBERS, st.integers(0, 4), min_size=2, max_size=5),
        wanted=st.sets(NUMBERS, min_size=1),
    )
    def a_node_that_has_run_for_a_while(self, begun: dict[int, int], wanted: set[int]) -> None:
        for n, steps in begun.items():
            self.cache.desire(image(n))
            for _ in range(steps):
                self.pull_on(n)
        self.the_site_speaks(wanted)

    def make_store(self) -> FileStore | DeviceStore:
        return FileStore(self.root / "cache", CAPACITY)

    def open(self) -> None:
        self.store = self.make_store()
        self.cache = Cache(
            state_dir=self.root / "state",
            stores=[self.store],
            clock=lambda: self.now,
            low_watermark=0.6,
            high_watermark=0.8,
            on_evict=lambda eviction: self.evicted.append(eviction.infohash),
        )
        recovery = self.cache.recover()
        assert recovery.corrupt == ()
        self.desired = None

    def teardown(self) -> None:
        self.home.cleanup()

    def protected(self) -> set[str]:
        """What making room may not touch."""
        kept = {infohash for infohash, _ in self.held.values()}
        for held in self.cache.snapshot().holdings:
            r = held.record
            active = r.active and r.state not in (State.FAILED, State.BLOCKED)
            wanted = self.desired is None or r.infohash in self.desired
            if r.pinned or active or wanted or r.state in UNDER_WAY:
                kept.add(r.infohash)
        return kept & {v.infohash for v in self.store.volumes()}

    def state(self, n: int) -> State:
        record = self.cache.record(image(n).infohash)
        return State.ABSENT if record is None else record.state

    @rule(n=NUMBERS, active=st.booleans(), retry=st.booleans())
    def desire(self, n: int, active: bool, retry: bool) -> None:
        kept, before = self.protected(), self.state(n)
        record = self.cache.desire(image(n), active=active, retry=retry)
        if self.desired is not None:
            self.desired.add(record.infohash)
        assert kept <= {v.infohash for v in self.store.volumes()} | (
            {record.infohash} if before is State.FAILED else set()
        )
        if before is State.ABSENT:
            assert record.state is State.RESERVED or record.reason is NodeReason.NO_SPACE

    @rule(n=NUMBERS)
    def pull_on(self, n: int) -> None:
        """One step further on the way to ready."""
        infohash = image(n).infohash
        match self.state(n):
            case State.RESERVED:
                self.cache.start_pull(infohash)
            case State.PULLING:
                volume = self.cache.volume(infohash)
                if volume.sealed:
                    assert self.cache.leases(infohash)
                    return
                with self.store.writing(volume) as target:
                    os.pwrite(target.fd, byte(n), 0)
                self.damaged.discard(infohash)
                self.cache.to_verifying(infohash, fetched_bytes=1)
            case State.VERIFYING:
                assert self.cache.ready(infohash).state is State.READY

    @rule(n=NUMBERS)
    def bring(self, n: int) -> None:
        """All the way."""
        self.cache.desire(image(n))
        if self.desired is not None:
            self.desired.add(image(n).infohash)
        for _ in range(3):
            self.pull_on(n)

    @rule(n=NUMBERS, reason=st.sampled_from([NodeReason.STALLED, NodeReason.STORAGE_FAILED]))
    def fail(self, n: int, reason: NodeReason) -> None:
        try:
            self.cache.fail(image(n).infohash, reason)
        except (NotFound, Conflict):
            assert self.state(n) in (State.ABSENT, State.BLOCKED)

    @rule(target=leases, n=NUMBERS, hours=st.integers(1, 5))
    def a_job_comes(self, n: int, hours: int) -> Any:
        """For an image that is ready, where there is one."""
        ready = [m for m in range(1, 7) if self.state(m) is State.READY]
        return self.lease(ready[n % len(ready)] if ready else n, hours)

    @rule(target=leases, n=NUMBERS, hours=st.integers(1, 5))
    def an_image_comes_and_a_job(self, n: int, hours: int) -> Any:
        self.bring(n)
        return self.lease(n, hours)

    @rule(target=leases, n=NUMBERS, hours=st.integers(1, 5))
    def a_job_comes_for_any_image(self, n: int, hours: int) -> Any:
        return self.lease(n, hours)

    def lease(self, n: int, hours: int) -> Any:
        state, kept = self.state(n), self.protected()
        until = self.now + timedelta(hours=hours)
        try:
            lease = self.cache.lease(
                image(n).infohash, holder=TimeHolder(until), user="u", cow_bytes=COW
            )
        except (NotFound, NotReady, Revoked):
            assert state is not State.READY or self.marked(n)
            return multiple()
        except NoSpace:
            assert self.free_for_instances() < COW
            return multiple()
        assert state is State.READY
        assert not self.marked(n)
        assert kept <= {v.infohash for v in self.store.volumes()}
        self.held[lease.lease] = (lease.infohash, until)
        return lease.lease

    def marked(self, n: int) -> bool:
        record = self.cache.record(image(n).infohash)
        return record is not None and record.damaged

    def free_for_instances(self) -> int:
        return self.store.space().free_bytes

    @rule(n=NUMBERS)
    def a_bit_flips_and_is_found(self, n: int) -> None:
        """Under the seal: what the file system says of the file stays the same."""
        ready = [m for m in range(1, 7) if self.state(m) is State.READY and not self.marked(m)]
        used = [m for m in ready if self.cache.leases(image(m).infohash)]
        if not ready:
            return
        n = (used or ready)[n % len(used or ready)]
        infohash = image(n).infohash
        self.flip(self.cache.volume(infohash).path)
        self.damaged.add(infohash)
        leased = bool(self.cache.leases(infohash))
        record = self.cache.mark_damaged(infohash, "1 bad piece")
        assert record.state is (State.READY if leased else State.PULLING)
        with pytest.raises(NotReady):
            self.cache.lease(infohash, holder=TimeHolder(self.now), user="u", cow_bytes=COW)

    def flip(self, path: Path) -> None:
        before = path.stat()
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.write(b"\xff")
        path.chmod(0o444)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    @rule(lease=leases)
    def release(self, lease: str) -> None:
        try:
            self.cache.release(lease)
        except NotFound:
            assert lease not in self.held
        self.held.pop(lease, None)

    @rule(hours=st.integers(0, 3))
    def time_passes(self, hours: int) -> None:
        self.now += timedelta(hours=hours)
        dead = {lease for lease, (_, until) in self.held.items() if until <= self.now}
        assert {one.lease for one in self.cache.reap_dead_leases()} == dead
        self.held = {k: v for k, v in self.held.items() if k not in dead}

    @rule(n=NUMBERS, pinned=st.booleans())
    def pin(self, n: int, pinned: bool) -> None:
        if self.state(n) is not State.ABSENT:
            (self.cache.pin if pinned else self.cache.unpin)(image(n).infohash)

    @rule(n=NUMBERS, on=st.booleans())
    def activate(self, n: int, on: bool) -> None:
        if self.state(n) is not State.ABSENT:
            (self.cache.activate if on else self.cache.deactivate)(image(n).infohash)

    @rule(n=NUMBERS, on=st.booleans())
    def block(self, n: int, on: bool) -> None:
        try:
            (self.cache.block if on else self.cache.unblock)(image(n).infohash)
        except (NotFound, Conflict):
            assert not on or self.state(n) is State.ABSENT

    @rule(n=NUMBERS)
    def repair(self, n: int) -> None:
        infohash = image(n).infohash
        try:
            self.cache.repair(infohash)
        except (NotFound, Conflict):
            assert self.state(n) is not State.READY or self.cache.leases(infohash)

    @rule(n=NUMBERS, force=st.booleans())
    def evict(self, n: int, force: bool) -> None:
        infohash, kept = image(n).infohash, self.protected()
        leased = infohash in {held for held, _ in self.held.values()}
        try:
            self.cache.evict(infohash, force=force)
        except DistribError:
            record = self.cache.record(infohash)
            assert record is None or leased or (not force)
            return
        assert not leased
        assert force or infohash not in kept

    @rule()
    def use_is_brought_below_the_high_watermark(self) -> None:
        kept, before = self.protected(), self.store.space()
        self.evicted.clear()
        self.cache.relieve()
        assert kept <= {v.infohash for v in self.store.volumes()}
        if before.used_bytes <= 0.8 * before.capacity_bytes or self.store.volume_per_device:
            assert self.evicted == []

    @rule(dry_run=st.booleans())
    def collect(self, dry_run: bool) -> None:
        kept, before = self.protected(), {v.infohash for v in self.store.volumes()}
        gone = {one.infohash for one in self.cache.collect(dry_run=dry_run)}
        after = {v.infohash for v in self.store.volumes()}
        assert gone & before == before - kept
        assert after == (before if dry_run else kept)

    @rule(n=NUMBERS)
    def undesire(self, n: int) -> None:
        """The site wants all that is here but this one."""
        here = {h.record.infohash for h in self.cache.snapshot().holdings}
        self.desired = here - {image(n).infohash}
        self.cache.set_desired(self.desired)

    @rule(
        n=NUMBERS,
        what=st.sampled_from(["desire", "pull", "ready", "lease", "release", "evict", "collect"]),
        step=st.integers(1, 40),
    )
    def crash(self, n: int, what: str, step: int) -> None:
        """kill -9 in the middle of an operation, or just after it; then a start."""
        kept, before = self.protected(), set(self.held)
        ending = next(iter(sorted(before)), None) if what == "release" else None

        def operation() -> None:
            infohash = image(n).infohash
            with suppress(DistribError):
                match what:
                    case "desire":
                        self.cache.desire(image(n))
                    case "pull":
                        self.pull_on(n)
                    case "ready":
                        self.bring(n)
                    case "lease":
                        until = TimeHolder(self.now + timedelta(hours=2))
                        self.cache.lease(infohash, holder=until, user="u", cow_bytes=COW)
                    case "release" if ending is not None:
                        self.cache.release(ending)
                    case "evict":
                        self.cache.evict(infohash)
                    case "collect":
                        self.cache.collect()

        in_a_child(operation, step)
        self.open()
        now = {one.lease: one for one in self.cache.leases()}
        lives = {lease for lease, (_, until) in self.held.items() if until > self.now}
        assert lives - {ending} <= set(now)
        assert set(now) <= before or what == "lease"
        self.held = {
            key: (one.infohash, one.holder.until)
            for key, one in now.items()
            if isinstance(one.holder, TimeHolder)
        }
        # What a fail would free is nobody's any more; all else that was kept is there.
        assert kept <= {v.infohash for v in self.store.volumes()}
        if what in ("pull", "ready") and self.state(n) is State.READY and not self.marked(n):
            self.damaged.discard(image(n).infohash)

    @rule(wanted=st.sets(NUMBERS))
    def the_site_speaks(self, wanted: set[int]) -> None:
        self.desired = {image(n).infohash for n in wanted}
        self.cache.set_desired(self.desired)

    @rule()
    def restart(self) -> None:
        self.held = {k: v for k, v in self.held.items() if v[1] > self.now}
        self.open()

    @invariant()
    def no_lease_is_lost_or_left(self) -> None:
        assert {one.lease for one in self.cache.leases()} == set(self.held)
        assert {one.lease for one in self.store.instances()} == set(self.held)
        there = {v.infohash for v in self.store.volumes()}
        for lease in self.cache.leases():
            assert lease.infohash in there
            assert Path(lease.device).exists()

    @invariant()
    def at_most_one_version_is_active(self) -> None:
        active = [h.record.identifier for h in self.cache.snapshot().holdings if h.record.active]
        assert len(active) == len(set(active))

    @invariant()
    def used_is_the_sum_and_within_the_quota(self) -> None:
        volumes = sum(v.size_bytes for v in self.store.volumes())
        instances = len(self.held) * COW
        grown = sum(max(0, one.path.stat().st_blocks * 512 - COW) for one in self.store.instances())
        assert self.store.space().used_bytes == volumes + instances + grown
        assert volumes + instances <= CAPACITY

    @invariant()
    def no_wrong_byte_is_ready(self) -> None:
        for volume in self.store.volumes():
            n = int(volume.infohash, 16)
            if self.state(n) is not State.READY or volume.infohash in self.damaged:
                continue
            with volume.path.open("rb") as file:
                assert file.read(1) == byte(n)

    @invariant()
    def what_is_damaged_is_marked_or_pulled_again(self) -> None:
        for infohash in self.damaged:
            n = int(infohash, 16)
            assert self.marked(n) or self.state(n) is not State.READY

    @invariant()
    def memory_disk_and_store_agree(self) -> None:
        ledger = Ledger(self.root / "state", lambda: self.now, None)
        ledger.load()
        held = {h.record.infohash: h.record for h in self.cache.snapshot().holdings}
        assert ledger.records == held
        assert set(ledger.leases) == set(self.held)
        volumes = {v.infohash: v for v in self.store.volumes()}
        assert set(volumes) <= set(held)
        for infohash, record in held.items():
            assert record.state is not State.EVICTING
            if record.state is not State.FAILED:
                assert infohash in volumes
            if record.state in (State.READY, State.BLOCKED):
                assert volumes[infohash].sealed
