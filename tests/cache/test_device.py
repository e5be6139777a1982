"""The device store: which device, whose it is, and what a boot does to its seal."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.cache.device import DeviceStore
from agent.cache.store import Volume
from distrib.errors import ConfigInvalid, NoSpace, StorageFailed, TargetTooSmall
from distrib.swarm import IMAGE_FILE

pytestmark = pytest.mark.root
MIB = 1 << 20
A, B, C = (letter * 64 for letter in "abc")
Attach = Callable[..., list[Path]]


def open_store(tmp_path: Path, devices: list[Path], boot_id: str = "boot-1") -> DeviceStore:
    return DeviceStore(
        devices,
        tmp_path / "devices",
        instances_dir=tmp_path / "instances",
        instances_capacity_bytes=4 * MIB,
        boot_id=boot_id,
    )


def sealed(store: DeviceStore, size_bytes: int = MIB, infohash: str = A) -> Volume:
    volume = store.reserve(infohash, size_bytes)
    with store.writing(volume) as target:
        os.pwrite(target.fd, os.urandom(size_bytes), 0)
    return store.seal(volume)


def device_of(volume: Volume) -> Path:
    return volume.path.readlink()


def test_the_smallest_device_that_is_large_enough_is_taken(tmp_path: Path, devices: Attach) -> None:
    large, small, middle = devices(8 * MIB, 2 * MIB, 4 * MIB)
    store = open_store(tmp_path, [large, small, middle])
    assert device_of(store.reserve(A, 3 * MIB)) == middle
    assert device_of(store.reserve(B, MIB)) == small
    assert device_of(store.reserve(C, MIB)) == large


def test_too_large_for_any_device_is_not_the_same_as_all_taken(
    tmp_path: Path, devices: Attach
) -> None:
    store = open_store(tmp_path, devices(2 * MIB, 4 * MIB))
    with pytest.raises(TargetTooSmall) as too_small:
        store.reserve(A, 5 * MIB)
    assert too_small.value.code == "target-too-small"
    store.reserve(A, 3 * MIB)
    with pytest.raises(NoSpace) as taken:
        store.reserve(B, 3 * MIB)
    assert taken.value.code == "no-space"
    assert taken.value.ids["free_bytes"] == 2 * MIB
    store.check_room(3 * MIB, without=[A])


def test_a_mounted_device_is_refused(tmp_path: Path, file_system: Callable[..., Path]) -> None:
    mount = file_system("ext4", 8 * MIB, "-q")
    found = subprocess.run(
        ["findmnt", "-no", "SOURCE", str(mount)], capture_output=True, text=True, check=True
    )
    with pytest.raises(StorageFailed, match="in use: mounted") as refused:
        open_store(tmp_path, [Path(found.stdout.strip())])
    assert "lsblk" in refused.value.hint


def test_a_device_that_is_being_written_cannot_be_mounted_by_others(
    tmp_path: Path, devices: Attach
) -> None:
    (device,) = devices(8 * MIB)
    subprocess.run(["mkfs.ext4", "-q", str(device)], check=True)
    store = open_store(tmp_path, [device])
    (tmp_path / "mnt").mkdir()
    with store.writing(store.reserve(A, MIB)):
        mount = ["mount", str(device), str(tmp_path / "mnt")]
        assert subprocess.run(mount, check=False, capture_output=True).returncode != 0


def test_a_plain_file_is_no_device(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    with pytest.raises(ConfigInvalid, match="not a block device"):
        open_store(tmp_path, [file])


def test_a_device_named_twice_is_refused(tmp_path: Path, devices: Attach) -> None:
    (device,) = devices(2 * MIB)
    by_id = tmp_path / "by-id"
    by_id.symlink_to(device)
    with pytest.raises(ConfigInvalid, match="are one device"):
        open_store(tmp_path, [device, by_id])


def test_a_link_out_of_the_pool_is_not_followed(tmp_path: Path, devices: Attach) -> None:
    mine, theirs = devices(2 * MIB, 2 * MIB)
    before = theirs.read_bytes()
    home = tmp_path / "devices" / A
    home.mkdir(parents=True)
    (home / IMAGE_FILE).symlink_to(theirs)
    (home / "volume.json").write_text(f'{{"v": 1, "infohash": "{A}", "size_bytes": {MIB}}}')
    store = open_store(tmp_path, [mine])
    assert store.volumes() == ()
    volume = sealed(store)
    assert device_of(volume) == mine
    assert theirs.read_bytes() == before


def test_removing_a_volume_leaves_the_device_node(tmp_path: Path, devices: Attach) -> None:
    (device,) = devices(2 * MIB)
    store = open_store(tmp_path, [device])
    store.remove(sealed(store))
    assert device.is_block_device()
    device.write_bytes(b"writable again")
    assert store.reserve(B, MIB).infohash == B


def test_the_kernel_refuses_writers_of_a_sealed_device(tmp_path: Path, devices: Attach) -> None:
    volume = sealed(open_store(tmp_path, devices(2 * MIB)))
    with pytest.raises(PermissionError):
        volume.path.write_bytes(b"x")


@pytest.mark.parametrize("size_bytes", [MIB, MIB + 1, MIB + 511, 2 * MIB - 1, 2 * MIB])
def test_nothing_of_the_previous_image_shows_past_the_end(
    tmp_path: Path, devices: Attach, size_bytes: int
) -> None:
    (device,) = devices(2 * MIB)
    device.write_bytes(b"\xaa" * 2 * MIB)
    store = open_store(tmp_path, [device])
    volume = store.reserve(A, size_bytes)
    with store.writing(volume) as target:
        os.pwrite(target.fd, b"\x55" * size_bytes, 0)
    store.seal(volume)
    assert device.read_bytes() == b"\x55" * size_bytes + bytes(2 * MIB - size_bytes)


def test_after_a_boot_the_seal_holds_when_the_blocks_do(tmp_path: Path, devices: Attach) -> None:
    (device,) = devices(2 * MIB)
    sealed(open_store(tmp_path, [device], "boot-1"))
    subprocess.run(["blockdev", "--setrw", str(device)], check=True)
    (volume,) = open_store(tmp_path, [device], "boot-2").volumes()
    assert volume.sealed
    with pytest.raises(PermissionError):
        device.write_bytes(b"x")


def test_after_a_boot_another_disk_under_the_name_is_noticed(
    tmp_path: Path, devices: Attach
) -> None:
    (device,) = devices(2 * MIB)
    sealed(open_store(tmp_path, [device], "boot-1"))
    subprocess.run(["blockdev", "--setrw", str(device)], check=True)
    device.write_bytes(os.urandom(2 * MIB))
    (volume,) = open_store(tmp_path, [device], "boot-2").volumes()
    assert not volume.sealed


def test_a_flag_that_was_taken_off_breaks_the_seal(tmp_path: Path, devices: Attach) -> None:
    (device,) = devices(2 * MIB)
    store = open_store(tmp_path, [device])
    sealed(store)
    subprocess.run(["blockdev", "--setrw", str(device)], check=True)
    assert not store.volumes()[0].sealed
    assert not open_store(tmp_path, [device]).volumes()[0].sealed


def test_a_device_whose_description_is_lost_is_not_given_away(
    tmp_path: Path, devices: Attach
) -> None:
    store = open_store(tmp_path, devices(2 * MIB))
    volume = sealed(store)
    volume.path.with_name("volume.json").write_bytes(b"{")
    (found,) = store.volumes()
    assert not found.sealed
    assert found.size_bytes == 2 * MIB, "the room: the image's size is not known any more"
    with pytest.raises(NoSpace):
        store.reserve(B, MIB)
    assert store.reserve(A, MIB).size_bytes == MIB


def test_an_interrupted_seal_is_done_again(tmp_path: Path, devices: Attach) -> None:
    (device,) = devices(2 * MIB)
    store = open_store(tmp_path, [device])
    volume = store.reserve(A, MIB)
    subprocess.run(["blockdev", "--setro", str(device)], check=True)
    with store.writing(volume) as target:
        os.pwrite(target.fd, b"more", 0)
    assert store.seal(volume).sealed
