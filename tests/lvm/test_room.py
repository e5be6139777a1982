"""Room in a volume group: what is refused, before anything is made, and what is left behind."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from agent.cache.lvm import LvmStore
from agent.cache.lvmtools import LvmTools
from distrib.errors import ConfigInvalid, Conflict, NoSpace, StorageFailed
from tests.lvm.conftest import MIB, SIZE, A, B, Open, sealed
from tests.uml.disks import DISKS, NO_UDEV, VG, run

pytestmark = pytest.mark.uml


def test_a_full_group_refuses_images_and_instances_before_anything_is_made(
    store: LvmStore,
) -> None:
    volume = sealed(store)
    rest = store.space().free_bytes
    store.reserve(B, rest - MIB)
    before = run("lvs", VG).stdout
    with pytest.raises(NoSpace, match="that it may in volume group vg0") as refused:
        store.reserve("c" * 64, 2 * MIB)
    assert refused.value.ids["free_bytes"] == MIB
    with pytest.raises(NoSpace):
        store.make_instance(volume, "l-000001", cow_bytes=2 * MIB, scratch_bytes=0)
    with pytest.raises(NoSpace):
        store.make_instance(volume, "l-000001", cow_bytes=MIB, scratch_bytes=MIB)
    assert run("lvs", VG).stdout == before
    assert store.instances() == ()


def test_room_that_others_have_taken_is_no_space_too(store: LvmStore) -> None:
    free = store.space().free_bytes
    with pytest.raises(NoSpace, match=r"lvcreate: .*insufficient free space"):
        LvmTools.open(VG).run("lvcreate", "--name", "theirs", "--size", f"{free + MIB}b", VG)
    run("lvcreate", "--config", NO_UDEV, "-n", "theirs", "-l", "100%FREE", VG)
    with pytest.raises(NoSpace):
        store.reserve(A, SIZE)
    assert store.volumes() == ()


def test_an_image_takes_whole_extents_and_a_snapshot_no_more_than_it_can_fill(
    store: LvmStore,
) -> None:
    volume = sealed(store, size_bytes=SIZE - 1000)
    assert volume.size_bytes == SIZE - 1000
    assert store.space().used_bytes == SIZE
    store.make_instance(volume, "l-000001", cow_bytes=1 << 40, scratch_bytes=0)
    (one,) = store.snapshots()
    assert one.safe
    assert SIZE < one.cow_bytes < SIZE + MIB


def test_only_the_physical_volumes_that_are_allowed_are_used(
    two_disks: str, tmp_path: Path
) -> None:
    store = LvmStore(two_disks, tmp_path / "lvm", pvs=[DISKS[1]])
    assert store.space().capacity_bytes < 96 * MIB
    volume = sealed(store)
    store.make_instance(volume, "l-000001", cow_bytes=MIB, scratch_bytes=MIB)
    used = {line.split("(")[0].strip() for line in run("lvs", "--noheadings", "-o", "devices", "-S",
            "segtype=linear", VG).stdout.splitlines()}  # fmt: skip
    assert used == {str(DISKS[1])}
    with pytest.raises(ConfigInvalid, match="/dev/ubdd: not a physical volume of vg0"):
        LvmStore(two_disks, tmp_path / "lvm", pvs=[DISKS[2]])


def test_a_group_that_is_not_there_is_a_matter_of_the_settings(tmp_path: Path, group: str) -> None:
    with pytest.raises(ConfigInvalid, match='Volume group "vg9" not found'):
        LvmStore("vg9", tmp_path / "lvm")


def test_a_missing_disk_is_told_and_nothing_is_made(two_disks: str, tmp_path: Path) -> None:
    store = LvmStore(two_disks, tmp_path / "lvm")
    with DISKS[1].open("r+b") as disk:
        label = disk.read(MIB)
        disk.seek(0)
        disk.write(bytes(MIB))
        os.fsync(disk.fileno())
    with pytest.raises(StorageFailed, match="missing"):
        store.reserve(A, SIZE)
    assert store.volumes() == ()
    with DISKS[1].open("r+b") as disk:
        disk.write(label)
    assert store.reserve(A, SIZE).size_bytes == SIZE


def test_a_group_that_another_command_holds_is_waited_for_and_then_told(
    open_store: Open,
) -> None:
    store = open_store(tool_timeout_s=3.0)
    lock = os.open(f"/run/lock/lvm/V_{VG}", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StorageFailed, match="another command holds volume group vg0"):
            store.reserve(A, SIZE)
    finally:
        os.close(lock)
    assert store.reserve(A, SIZE).size_bytes == SIZE


def test_a_volume_of_somebody_else_with_our_name_is_left_alone(
    store: LvmStore, open_store: Open
) -> None:
    run("lvcreate", "--config", NO_UDEV, "-n", f"distrib-{A}",
        "-L", "1m", VG)  # fmt: skip
    with pytest.raises(Conflict, match="is there and not ours"):
        store.reserve(A, SIZE)
    again = open_store()
    assert again.volumes() == ()
    assert again.space().used_bytes == 0
    assert f"distrib-{A}" in run("lvs", VG).stdout


def test_tags_say_what_a_volume_holds(store: LvmStore) -> None:
    sealed(store)
    store.label(A, {"image": "7cb7a2d5", "version": "1.0 beta,2", "state": "pulling"})
    store.label(A, {"image": "7cb7a2d5", "version": "1.0 beta,2", "state": "ready"})
    shown = run("lvs", "--noheadings", "-o", "lv_tags", f"{VG}/distrib-{A}").stdout.strip()
    assert set(shown.split(",")) == {
        "distrib",
        f"distrib.infohash={A}",
        f"distrib.bytes={SIZE}",
        "distrib.sealed",
        "distrib.image=7cb7a2d5",
        "distrib.version=1.0_beta_2",
        "distrib.state=ready",
    }


def test_after_a_boot_all_is_active_again_and_the_seal_holds(
    store: LvmStore, open_store: Open
) -> None:
    volume = sealed(store)
    data = volume.path.read_bytes()
    made = store.make_instance(volume, "l-000001", cow_bytes=MIB, scratch_bytes=MIB)
    run("vgchange", "--config", NO_UDEV, "-an", VG)
    activated = run("vgchange", "--config", NO_UDEV, "-aay", VG,
                    check=False).stdout  # fmt: skip
    assert "0 logical volume(s)" in activated, "the host does not activate ours by itself"
    again = open_store()
    assert again.instances() == (made,)
    (there,) = again.volumes()
    assert there.sealed
    assert there.path.read_bytes() == data
    again.drop_instance("l-000001")
    assert again.space().used_bytes == SIZE
