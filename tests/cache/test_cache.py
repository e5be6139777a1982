"""The cache as its node lives with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.cache.cache import Cache
from agent.cache.device import DeviceStore
from agent.cache.file import FileStore
from agent.cache.holders import TimeHolder
from agent.cache.records import ImageVersion, VolumeRecord
from agent.cache.store import Volume
from distrib.bus.messages import NodeReason, State
from distrib.errors import Conflict, NoSpace, NotFound, NotReady, Revoked, StorageFailed
from tests.cache.node import MIB, Node

Image = Callable[..., ImageVersion]


@pytest.fixture
def node(tmp_path: Path, clock: Any) -> Node:
    return Node(tmp_path, clock)


def test_an_image_comes_is_used_and_goes(node: Node, image: Image) -> None:
    one = image(1)
    assert node.pull(one, active=True).state is State.READY
    lease = node.lease(one)
    assert node.state(one) is State.LEASED
    assert Path(lease.device).exists()
    with pytest.raises(Conflict, match="leased"):
        node.cache.evict(one.infohash, force=True)
    node.cache.release(lease.lease)
    assert node.state(one) is State.READY
    assert not Path(lease.device).exists()
    node.cache.evict(one.infohash, force=True)
    assert node.state(one) is State.ABSENT
    assert node.cache.snapshot().used_bytes == 0
    assert [state for _, state in node.seen if state is not State.READY] == [
        State.RESERVED, State.RESERVED, State.PULLING, State.VERIFYING, State.EVICTING,
        State.ABSENT,
    ]  # fmt: skip


def test_every_change_is_on_disk_before_it_is_announced(
    tmp_path: Path, clock: Any, image: Image
) -> None:
    on_disk: list[bool] = []

    def look(record: VolumeRecord) -> None:
        file = tmp_path / "state" / "volumes" / f"{record.infohash}.json"
        said = file.read_text() if file.exists() else '"state":"absent"'
        on_disk.append(f'"state":"{record.state}"' in said)

    store = FileStore(tmp_path / "cache", 10 * MIB)
    cache = Cache(state_dir=tmp_path / "state", stores=[store], clock=clock, on_change=look)
    cache.recover()
    one = image(1)
    cache.desire(one)
    cache.start_pull(one.infohash)
    cache.to_verifying(one.infohash)
    cache.ready(one.infohash)
    cache.evict(one.infohash, force=True)
    assert len(on_disk) == 6
    assert all(on_disk)


def test_wanting_twice_is_wanting_once(node: Node, image: Image) -> None:
    first = node.cache.desire(image(1))
    assert node.cache.desire(image(1)) == first
    ready = node.pull(image(1))
    assert node.cache.desire(image(1)) == ready


# Room -------------------------------------------------------------------------------------------


def test_without_room_the_image_fails_and_says_what_is_in_the_way(node: Node, image: Image) -> None:
    node.pull(image(1, 4 * MIB))
    node.pull(image(2, 4 * MIB))
    node.cache.pin(image(2).infohash)
    node.cache.set_desired([image(1).infohash])
    refused = node.cache.desire(image(3, 4 * MIB))
    assert (refused.state, refused.reason) == (State.FAILED, NodeReason.NO_SPACE)
    assert "desired: 1" in refused.text
    assert "pinned: 1" in refused.text
    assert node.state(image(1)) is node.state(image(2)) is State.READY
    with pytest.raises(NotReady):
        node.lease(image(3))


def test_a_failed_image_is_tried_again_when_asked(node: Node, image: Image) -> None:
    node.pull(image(1, 8 * MIB))
    assert node.cache.desire(image(2, 8 * MIB)).state is State.FAILED
    node.cache.set_desired([image(2).infohash])
    assert node.cache.desire(image(2, 8 * MIB)).state is State.FAILED, "not by itself"
    assert node.cache.desire(image(2, 8 * MIB), retry=True).state is State.RESERVED
    assert node.state(image(1)) is State.ABSENT


def test_the_least_recently_leased_goes_first_down_to_the_low_watermark(
    node: Node, image: Image
) -> None:
    images = [image(n, 2 * MIB) for n in range(1, 5)]
    for one in images:
        node.pull(one)
        node.clock.forward(hours=1)
    node.cache.release(node.lease(images[0]).lease)
    node.cache.set_desired([])
    node.cache.desire(image(9, 3 * MIB))
    left = [n for n, one in enumerate(images) if node.state(one) is State.READY]
    assert left == [0, 3], "half of 10 MiB may stay; the first was used last"


def test_an_instance_makes_room_for_itself_but_never_at_its_own_images_cost(
    node: Node, image: Image
) -> None:
    node.pull(image(1, 4 * MIB))
    node.pull(image(2, 4 * MIB))
    node.cache.set_desired([])
    lease = node.cache.lease(
        image(1).infohash, holder=TimeHolder(node.clock()), user="a", cow_bytes=4 * MIB
    )
    assert Path(lease.device).exists()
    assert node.state(image(2)) is State.ABSENT
    with pytest.raises(NoSpace):
        node.cache.lease(
            image(1).infohash, holder=TimeHolder(node.clock()), user="a", cow_bytes=4 * MIB
        )
    assert len(node.cache.leases()) == 1


def test_nothing_is_evicted_before_the_site_has_said_what_it_wants(
    node: Node, image: Image
) -> None:
    node.pull(image(1, 8 * MIB))
    node.restart()
    assert node.cache.desire(image(2, 8 * MIB)).reason is NodeReason.NO_SPACE
    assert node.state(image(1)) is State.READY


@pytest.mark.root
def test_on_devices_one_image_makes_room_for_one(
    tmp_path: Path, clock: Any, image: Image, devices: Callable[..., list[Path]]
) -> None:
    store = DeviceStore(
        devices(2 * MIB, 2 * MIB, 8 * MIB),
        tmp_path / "devices",
        instances_dir=tmp_path / "instances",
        instances_capacity_bytes=4 * MIB,
    )
    node = Node(tmp_path, clock)
    node.restart(store)
    small, other, large = image(1, 2 * MIB), image(2, MIB), image(3, 4 * MIB)
    for one in (small, other, large):
        assert node.pull(one).state is State.READY
        clock.forward(hours=1)
    node.cache.set_desired([])
    assert node.cache.desire(image(9, 16 * MIB)).reason is NodeReason.TARGET_TOO_SMALL
    assert node.cache.desire(image(4, 6 * MIB)).state is State.RESERVED
    assert node.state(large) is State.ABSENT
    assert node.state(small) is node.state(other) is State.READY
    lease = node.lease(small)
    assert lease.format == "qcow2"
    node.restart(store)
    assert [one.lease for one in node.cache.leases()] == [lease.lease]


# Which version is active ------------------------------------------------------------------------


def test_the_old_version_stays_active_until_the_new_one_is_ready(node: Node, image: Image) -> None:
    old, new = image(1, of=7), image(2, of=7)
    node.pull(old, active=True)
    node.cache.desire(new, active=True)
    assert node.cache.resolve(old.identifier).infohash == old.infohash
    node.pull(new, active=True)
    assert node.cache.resolve(old.identifier).infohash == new.infohash
    assert node.cache.resolve(old.identifier, "1.1").infohash == old.infohash
    node.cache.desire(old, active=True)
    assert node.cache.resolve(old.identifier).infohash == old.infohash, "rolled back"


def test_a_rollout_that_is_called_off_changes_nothing(node: Node, image: Image) -> None:
    old, new = image(1, of=7), image(2, of=7)
    node.pull(old, active=True)
    node.cache.desire(new, active=True)
    node.cache.desire(new, active=False)
    node.pull(new)
    assert node.cache.resolve(old.identifier).infohash == old.infohash


def test_the_first_version_is_active_from_the_start_and_not_leased_before_it_is_ready(
    node: Node, image: Image
) -> None:
    record = node.cache.desire(image(1), active=True)
    assert node.cache.resolve(image(1).identifier) == record
    with pytest.raises(NotReady, match="reserved"):
        node.lease(image(1))


def test_a_crash_in_a_switch_leaves_the_new_one(
    node: Node, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = image(1, of=7), image(2, of=7)
    node.pull(old, active=True)
    node.pull(new)
    kept = (node.state_dir / "volumes" / f"{old.infohash}.json").read_bytes()
    node.cache.activate(new.infohash)
    (node.state_dir / "volumes" / f"{old.infohash}.json").write_bytes(kept)
    node.restart()
    assert node.cache.resolve(old.identifier).infohash == new.infohash
    assert [r.active for r in node.recovery.ready] == [False, True]


def test_an_unknown_image_is_not_found(node: Node, image: Image) -> None:
    with pytest.raises(NotFound):
        node.cache.resolve(image(1).identifier)
    with pytest.raises(NotFound):
        node.lease(image(1))
    with pytest.raises(NotFound):
        node.cache.release("l-000000")


# Trust withdrawn, disks that fail ---------------------------------------------------------------


def test_a_revoked_image_gives_no_new_leases_and_leaves_running_ones(
    node: Node, image: Image
) -> None:
    node.pull(image(1), active=True)
    lease = node.lease(image(1))
    assert node.cache.block(image(1).infohash, "endorser withdrew it").state is State.BLOCKED
    with pytest.raises(Revoked, match="endorser withdrew it"):
        node.lease(image(1))
    assert node.cache.leases() == (lease,)
    node.restart()
    assert node.state(image(1)) is State.BLOCKED
    node.cache.unblock(image(1).infohash)
    assert node.state(image(1)) is State.LEASED


def test_a_revoked_image_under_way_fails_and_is_no_longer_leasable(
    node: Node, image: Image
) -> None:
    node.cache.desire(image(1))
    blocked = node.cache.block(image(1).infohash)
    assert (blocked.state, blocked.reason) == (State.FAILED, NodeReason.REVOKED)
    with pytest.raises(Revoked):
        node.lease(image(1))


class FailingDisk(FileStore):
    """A store whose flush fails."""

    def seal(self, volume: Volume) -> Volume:
        raise StorageFailed(f"sealing {volume.path}: Input/output error")


def test_a_flush_that_fails_is_no_ready_image_and_its_bytes_are_not_used_again(
    node: Node, image: Image
) -> None:
    node.restart(FailingDisk(node.cache_dir, 10 * MIB))
    failed = node.pull(image(1))
    assert (failed.state, failed.reason) == (State.FAILED, NodeReason.STORAGE_FAILED)
    assert "Input/output error" in failed.text
    again = node.cache.desire(image(1), retry=True)
    assert again.state is State.RESERVED, "fresh: no byte of the first try is kept"
    assert node.cache.volume(image(1).infohash).path.read_bytes().strip(b"\0") == b""


def test_other_failures_keep_what_was_fetched(node: Node, image: Image) -> None:
    node.cache.desire(image(1))
    node.cache.start_pull(image(1).infohash)
    node.write(image(1))
    node.cache.fail(image(1).infohash, NodeReason.STALLED, "no piece for 60 s")
    again = node.cache.desire(image(1), retry=True)
    assert again.state is State.PULLING
    assert node.cache.volume(image(1).infohash).path.read_bytes().startswith(b"boot sector")


def test_a_repair_waits_for_the_leases(node: Node, image: Image) -> None:
    node.pull(image(1))
    lease = node.lease(image(1))
    with pytest.raises(Conflict):
        node.cache.repair(image(1).infohash)
    node.cache.release(lease.lease)
    assert node.cache.repair(image(1).infohash).state is State.PULLING
    node.write(image(1), b"mended")
    node.cache.to_verifying(image(1).infohash)
    assert node.cache.ready(image(1).infohash).state is State.READY


def test_an_eviction_while_sealing_is_noticed(node: Node, image: Image) -> None:
    class Slow(FileStore):
        def seal(self, volume: Volume) -> Volume:
            sealed = super().seal(volume)
            node.cache.fail(volume.infohash, NodeReason.CANCELLED)
            return sealed

    node.restart(Slow(node.cache_dir, 10 * MIB))
    with pytest.raises(Conflict):
        node.pull(image(1))
    assert node.state(image(1)) is State.FAILED


# Leases and their holders -----------------------------------------------------------------------
