"""Bad pieces under running jobs, files that cannot be removed, instances that take their time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog

from agent.cache.file import FileStore
from agent.cache.holders import TimeHolder
from agent.cache.leases import Lease
from agent.cache.records import ImageVersion
from agent.cache.store import Instance, Volume
from distrib.bus.messages import State
from distrib.errors import Conflict, NotReady, Revoked, StorageFailed
from tests.cache.node import MIB, Node

Image = Callable[..., ImageVersion]


@pytest.fixture
def node(tmp_path: Path, clock: Any) -> Node:
    return Node(tmp_path, clock)


def test_a_damaged_image_gives_no_leases_and_is_pulled_when_its_last_lease_ends(
    node: Node, image: Image
) -> None:
    node.pull(image(1))
    first, second = node.lease(image(1)), node.lease(image(1))
    assert node.cache.mark_damaged(image(1).infohash, "3 bad pieces").state is State.READY
    with pytest.raises(NotReady, match="damaged on this node: 3 bad pieces"):
        node.lease(image(1))
    node.cache.release(first.lease)
    node.restart()
    assert node.cache.leases() == (second,)
    with pytest.raises(NotReady, match="damaged"):
        node.lease(image(1))
    node.cache.release(second.lease)
    assert node.state(image(1)) is State.PULLING
    node.write(image(1), b"mended")
    node.cache.to_verifying(image(1).infohash)
    assert not node.cache.ready(image(1).infohash).damaged
    node.lease(image(1))


def test_damage_is_repaired_at_once_where_nothing_stands_on_it(node: Node, image: Image) -> None:
    node.pull(image(1))
    assert node.cache.mark_damaged(image(1).infohash).state is State.PULLING


def test_damage_is_repaired_when_the_last_holder_dies_also_over_a_start(
    node: Node, image: Image
) -> None:
    for n in (1, 2):
        node.pull(image(n))
        node.lease(image(n), TimeHolder(node.clock() + timedelta(hours=n)))
        node.cache.mark_damaged(image(n).infohash)
    node.clock.forward(hours=1)
    node.cache.reap_dead_leases()
    assert node.state(image(1)) is State.PULLING
    assert node.state(image(2)) is State.LEASED
    node.clock.forward(hours=1)
    node.restart()
    assert node.state(image(2)) is State.PULLING
    assert image(2).infohash in {record.infohash for record in node.recovery.resume}


def test_damage_outlives_a_revocation_that_is_taken_back(node: Node, image: Image) -> None:
    node.pull(image(1))
    lease = node.lease(image(1))
    node.cache.mark_damaged(image(1).infohash)
    node.cache.block(image(1).infohash)
    node.cache.release(lease.lease)
    assert node.state(image(1)) is State.BLOCKED
    assert node.cache.unblock(image(1).infohash).state is State.PULLING


def test_one_lease_that_cannot_be_removed_keeps_no_other(node: Node, image: Image) -> None:
    node.pull(image(1))
    until = TimeHolder(node.clock() + timedelta(hours=1))
    leases = [node.lease(image(1), until) for _ in range(3)]
    record = node.state_dir / "leases" / f"{leases[0].lease}.json"
    record.unlink()
    (record / "in the way").mkdir(parents=True)
    stray = Path(leases[1].device).parent / "in the way"
    stray.mkdir()
    node.clock.forward(hours=1)
    with structlog.testing.capture_logs() as logs:
        assert set(node.cache.reap_dead_leases()) == set(leases[1:])
        assert node.cache.reap_dead_leases() == ()
    assert sorted(one["event"] for one in logs) == ["instance-not-removed", "lease-not-removed"]
    assert node.cache.leases() == (leases[0],)
    stray = next(node.cache_dir.rglob("in the way"))
    stray.rmdir()
    (record / "in the way").rmdir()
    record.rmdir()
    assert node.cache.reap_dead_leases() == (leases[0],)
    assert node.store.instances() == ()


class Failing(FileStore):
    """A store that fails to make an instance, after ``meanwhile``."""

    def __init__(self, directory: Path, meanwhile: Callable[[str], None]) -> None:
        super().__init__(directory, 10 * MIB)
        self._meanwhile = meanwhile

    def make_instance(self, volume: Volume, lease: str, **_: int) -> Instance:
        self._meanwhile(lease)
        raise StorageFailed("the disk is away")


def test_a_lease_that_was_not_made_and_could_not_be_taken_back_is_reaped(
    node: Node, image: Image
) -> None:
    node.pull(image(1))

    def hinder(lease: str) -> None:
        record = node.state_dir / "leases" / f"{lease}.json"
        record.unlink()
        (record / "in the way").mkdir(parents=True)

    node.restart(Failing(node.cache_dir, hinder))
    with pytest.raises(StorageFailed):
        node.lease(image(1))
    (left,) = node.cache.leases()
    assert not left.made
    record = node.state_dir / "leases" / f"{left.lease}.json"
    (record / "in the way").rmdir()
    record.rmdir()
    # Its holder, this process, lives on.
    assert node.cache.reap_dead_leases() == (left,)
    assert node.cache.leases() == ()


class Slow(FileStore):
    """A store that is asked, while it makes an instance, what ``meanwhile`` asks."""

    meanwhile: Callable[[], None]

    def make_instance(self, volume: Volume, lease: str, **room: int) -> Instance:
        other = threading.Thread(target=self.meanwhile)
        other.start()
        other.join(30)
        assert not other.is_alive(), "the cache answers while an instance is made"
        return super().make_instance(volume, lease, **room)


def test_the_cache_answers_while_an_instance_is_made(node: Node, image: Image) -> None:
    seen: list[object] = []

    def ask() -> None:
        (lease,) = node.cache.leases()
        seen.append(node.cache.snapshot().holdings[0].state)
        for forbidden in (
            lambda: node.cache.release(lease.lease),
            lambda: node.cache.evict(lease.infohash, force=True),
        ):
            with pytest.raises(Conflict):
                forbidden()
        seen.append(node.cache.reap_dead_leases())

    node.restart(slow := Slow(node.cache_dir, 10 * MIB))
    node.pull(image(1))
    slow.meanwhile = ask
    lease = node.lease(image(1), TimeHolder(node.clock()))
    assert seen == [State.LEASED, ()]
    assert Path(lease.device).exists()


def test_an_image_that_is_revoked_while_an_instance_is_made_is_not_leased(
    node: Node, image: Image
) -> None:
    node.restart(slow := Slow(node.cache_dir, 10 * MIB))
    node.pull(image(1))

    def revoke() -> None:
        node.cache.block(image(1).infohash)

    slow.meanwhile = revoke
    with pytest.raises(Revoked):
        node.lease(image(1))
    assert node.cache.leases() == ()
    assert node.store.instances() == ()


@pytest.mark.root
def test_the_files_of_a_lease_belong_to_whom_they_are_given(node: Node, image: Image) -> None:
    node.pull(image(1))
    lease: Lease = node.cache.lease(
        image(1).infohash,
        holder=TimeHolder(node.clock()),
        user="nobody",
        cow_bytes=65536,
        scratch_bytes=4096,
        owner_uid=65534,
    )
    assert lease.scratch is not None
    for path in (Path(lease.device), Path(lease.scratch)):
        found = path.stat()
        assert (found.st_uid, found.st_mode & 0o777) == (65534, 0o600)
    home = Path(lease.device).parent
    assert home.stat().st_uid == os.geteuid()
    assert home.stat().st_mode & 0o011 == 0o011
