"""Leases and volumes over the ends of their holders, and of the agent."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.cache.file import FileStore
from agent.cache.holders import TimeHolder, holder_of_pid
from agent.cache.records import ImageVersion
from agent.cache.store import Volume, WriteTarget
from distrib.bus.messages import NodeReason, State
from distrib.errors import Conflict, NotReady, StorageFailed
from tests.cache.node import MIB, Node

Image = Callable[..., ImageVersion]


@pytest.fixture
def node(tmp_path: Path, clock: Any) -> Node:
    return Node(tmp_path, clock)


def test_the_leases_of_the_dead_are_reaped_and_those_of_the_living_stay(
    node: Node, image: Image
) -> None:
    node.pull(image(1))
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as job:
        theirs = node.lease(image(1), holder_of_pid(job.pid))
        mine = node.lease(image(1))
        assert node.cache.reap_dead_leases() == ()
    assert node.cache.reap_dead_leases() == (theirs,)
    assert node.cache.leases() == (mine,)
    assert not Path(theirs.device).exists()
    assert [i.lease for i in node.store.instances()] == [mine.lease]


def test_leases_outlive_the_agent_and_die_with_their_holders(node: Node, image: Image) -> None:
    node.pull(image(1))
    mine = node.lease(image(1))
    own = holder_of_pid(os.getpid())
    used_again = node.lease(image(1), replace(own, start_time=own.start_time - 1))
    last_boots = node.lease(image(1), replace(own, boot_id="another"))
    node.restart()
    assert node.cache.leases() == (mine,)
    assert set(node.recovery.dropped_leases) == {used_again, last_boots}
    assert [i.lease for i in node.store.instances()] == [mine.lease]


def test_a_lease_by_time_ends_with_it(node: Node, image: Image) -> None:
    node.pull(image(1))
    lease = node.lease(image(1), TimeHolder(node.clock() + timedelta(hours=1)))
    node.clock.forward(minutes=59)
    assert node.cache.reap_dead_leases() == ()
    node.clock.forward(minutes=1)
    assert node.cache.reap_dead_leases() == (lease,)


def test_a_lease_whose_instance_cannot_be_made_is_no_lease(
    node: Node, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.pull(image(1))
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Exception, match="qemu-img"):
        node.lease(image(1))
    assert node.cache.leases() == ()
    assert node.store.instances() == ()
    assert list((node.state_dir / "leases").iterdir()) == []


def test_an_instance_whose_lease_cannot_be_read_is_left_to_its_job_for_a_day(
    node: Node, image: Image
) -> None:
    node.pull(image(1))
    lease = node.lease(image(1))
    (node.state_dir / "leases" / f"{lease.lease}.json").write_bytes(b"{")
    node.restart()
    (kept,) = node.cache.leases()
    assert (kept.lease, kept.device) == (lease.lease, lease.device)
    assert [error.code for error in node.recovery.corrupt] == ["state-corrupt"]
    node.clock.forward(days=1)
    assert node.cache.reap_dead_leases() == (kept,)


# Starts -----------------------------------------------------------------------------------------


def test_a_start_goes_on_with_what_was_under_way(node: Node, image: Image) -> None:
    fresh, pulling, verifying, ready = (image(n) for n in range(1, 5))
    node.cache.desire(fresh)
    node.cache.desire(pulling)
    node.cache.start_pull(pulling.infohash)
    node.cache.desire(verifying)
    node.cache.start_pull(verifying.infohash)
    node.cache.to_verifying(verifying.infohash)
    node.pull(ready)
    node.restart()
    resumed = {r.infohash: r.state for r in node.recovery.resume}
    assert resumed == {
        fresh.infohash: State.RESERVED,
        pulling.infohash: State.PULLING,
        verifying.infohash: State.PULLING,
    }
    assert [r.infohash for r in node.recovery.ready] == [ready.infohash]


def test_a_volume_that_was_written_behind_our_back_is_verified_again(
    node: Node, image: Image
) -> None:
    node.pull(image(1))
    with node.cache.volume(image(1).infohash).path.open("r+b") as file:
        file.write(b"forged")
    with pytest.raises(NotReady):
        node.lease(image(1))
    node.restart()
    (record,) = node.recovery.resume
    assert (record.state, record.reason) == (State.PULLING, NodeReason.RESUMED)


def test_a_start_removes_what_belongs_to_nothing(node: Node, image: Image) -> None:
    node.pull(image(1))
    node.pull(image(2))
    lease = node.lease(image(2))
    (node.state_dir / "volumes" / f"{image(1).infohash}.json").unlink()
    (node.state_dir / "leases" / f"{lease.lease}.json").unlink()
    node.restart()
    assert node.recovery.removed == (image(1).infohash,)
    assert [v.infohash for v in node.store.volumes()] == [image(2).infohash]
    assert node.store.instances() == ()
    (node.cache_dir / "volumes" / image(2).infohash).rename(node.cache_dir / "elsewhere")
    node.restart()
    assert node.state(image(2)) is State.ABSENT


def test_an_eviction_that_was_interrupted_is_finished(
    node: Node, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.pull(image(1))

    def fails(_: Volume) -> None:
        raise StorageFailed("removing: Input/output error")

    monkeypatch.setattr(node.store, "remove", fails)
    with pytest.raises(StorageFailed):
        node.cache.evict(image(1).infohash, force=True)
    assert node.state(image(1)) is State.EVICTING
    node.restart()
    assert node.state(image(1)) is State.ABSENT
    assert node.store.volumes() == ()


def test_a_volume_whose_record_is_damaged_waits_to_be_wanted_and_is_verified_anew(
    node: Node, image: Image
) -> None:
    node.pull(image(1))
    (node.state_dir / "volumes" / f"{image(1).infohash}.json").write_bytes(b"{")
    node.restart()
    assert node.cache.snapshot().unknown == (image(1).infohash,)
    assert len(node.recovery.corrupt) == 1
    adopted = node.cache.desire(image(1))
    assert (adopted.state, adopted.reason) == (State.PULLING, NodeReason.RESUMED)
    assert node.cache.volume(image(1).infohash).path.read_bytes().startswith(b"boot sector")
    assert node.cache.snapshot().unknown == ()
    node.restart()
    assert node.recovery.corrupt == ()


def test_a_volume_whose_record_is_damaged_goes_first_when_room_is_needed(
    node: Node, image: Image
) -> None:
    node.pull(image(1, 6 * MIB))
    (node.state_dir / "volumes" / f"{image(1).infohash}.json").write_bytes(b"{")
    node.restart()
    assert node.cache.desire(image(2, 6 * MIB)).state is State.RESERVED
    assert node.cache.snapshot().unknown == ()
    assert len(node.store.volumes()) == 1
    assert list((node.state_dir / "volumes").glob("*.bad")) == []


def test_writing_is_for_the_one_that_pulls(node: Node, image: Image) -> None:
    node.pull(image(1))
    volume = node.cache.volume(image(1).infohash)
    context = node.store.writing(volume)
    with pytest.raises(Conflict):
        _entered: WriteTarget = context.__enter__()


def test_a_volume_that_somebody_removed_is_pulled_anew_when_it_is_wanted_next(
    node: Node, image: Image
) -> None:
    node.pull(image(1))
    lease = node.lease(image(1))
    node.cache.volume(image(1).infohash).path.unlink()
    # A job may still read what it has open.
    assert node.cache.desire(image(1)).state is State.READY
    node.cache.release(lease.lease)
    assert node.cache.desire(image(1), active=True).state is State.RESERVED
    assert node.pull(image(1)).state is State.READY
    node.lease(image(1))


def test_a_blocked_volume_that_somebody_removed_is_pulled_anew_once_it_is_approved(
    node: Node, image: Image
) -> None:
    node.pull(image(1))
    node.cache.block(image(1).infohash, "not on the site list")
    node.cache.volume(image(1).infohash).path.unlink()
    assert node.cache.unblock(image(1).infohash).state is State.READY
    assert node.cache.desire(image(1)).state is State.RESERVED


def test_a_volume_that_somebody_wrote_to_is_verified_again_when_it_is_wanted_next(
    node: Node, image: Image
) -> None:
    node.pull(image(1))
    lease = node.lease(image(1))
    os.utime(node.cache.volume(image(1).infohash).path)
    assert node.cache.desire(image(1)).damaged
    node.cache.release(lease.lease)
    assert node.state(image(1)) is State.PULLING


def test_an_instance_that_cannot_be_removed_keeps_no_agent_from_starting(
    node: Node, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.pull(image(1))
    own = holder_of_pid(os.getpid())
    dead = node.lease(image(1), replace(own, start_time=own.start_time - 1))
    with monkeypatch.context() as patched:

        def busy(store: FileStore, lease: str) -> None:
            raise StorageFailed(f"instance of {lease} is open", hint="wait")

        patched.setattr(FileStore, "drop_instance", busy)
        node.restart()
        assert node.recovery.dropped_leases == (dead,)
        assert node.state(image(1)) is State.READY
    assert [one.lease for one in node.store.instances()] == [dead.lease]
    node.cache.reap_dead_leases()
    assert node.store.instances() == ()


def test_a_volume_whose_record_is_damaged_is_verified_once_the_jobs_on_it_have_ended(
    node: Node, image: Image
) -> None:
    node.pull(image(1))
    lease = node.lease(image(1))
    (node.state_dir / "volumes" / f"{image(1).infohash}.json").write_bytes(b"{")
    node.restart()
    assert "carries the instances" in node.cache.desire(image(1)).text
    assert node.cache.desire(image(1)).state is State.FAILED
    node.cache.release(lease.lease)
    assert node.cache.desire(image(1)).state is State.PULLING
