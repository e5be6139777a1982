"""A guest that writes what a host would act on: volume groups, file systems, RAID members.

Each test first shows that the signature is a real one: a host that looked would take it.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.cache.lvm import LvmStore
from agent.cache.lvm_findings import examine, rule_file
from agent.cache.store import Instance
from agent.settings import LvmSettings
from tests.lvm.conftest import MIB, A, B, Open, sealed, write
from tests.uml.disks import DISKS, NO_UDEV, VG, clear, run

pytestmark = pytest.mark.uml
LABEL = "root-of-the-host"
LVM_CONF = Path("/etc/lvm/lvm.conf")
RULES = Path("/run/udev/rules.d")


@pytest.fixture
def guest(store: LvmStore) -> Instance:
    """A job with a disk that it may write as it likes."""
    volume = sealed(store, size_bytes=8 * MIB)
    return store.make_instance(volume, "l-000001", cow_bytes=8 * MIB, scratch_bytes=4 * MIB)


@pytest.fixture
def careless_host() -> Iterator[None]:
    """Its own LVM looks into logical volumes."""
    before = LVM_CONF.read_text()
    LVM_CONF.write_text(before + "\ndevices {\n\tscan_lvs = 1\n}\n")
    yield
    LVM_CONF.write_text(before)


def group_of_a_guest(name: str, disk: Path = DISKS[1]) -> bytes:
    """The start of a disk with a physical volume and a group of that name."""
    only = f'devices{{filter=["a|{disk}|","r|.*|"]}} {NO_UDEV}'
    run("vgcreate", "--config", only, "-y", "-q", "-s", "64k", name, str(disk))
    run("lvcreate", "--config", only, "-y", "-q", "-Zn", "-an", "-n", "evil", "-L", "64k", name)
    with disk.open("r+b") as device:
        os.posix_fadvise(device.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = device.read(2 * MIB)
        device.seek(0)
        device.write(bytes(2 * MIB))
    return start


def raid_member() -> bytes:
    """The superblock of a Linux RAID, version 1.2 (linux/raid/md_p.h), 4 KiB into the device."""
    super_ = bytearray(256 + 256)
    struct.pack_into("<IIII", super_, 0, 0xA92B4EFC, 1, 0, 0)
    super_[16:32] = os.urandom(16)
    super_[32:40] = b"host:md0"
    struct.pack_into("<Q", super_, 80, 2048)
    struct.pack_into("<I", super_, 92, 2)
    struct.pack_into("<QQQ", super_, 128, 2048, 2048, 8)
    struct.pack_into("<I", super_, 220, 128)
    total = sum(struct.unpack(f"<{len(super_) // 4}I", super_))
    struct.pack_into("<I", super_, 216, ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF)
    return bytes(super_)


@contextmanager
def udev(*, with_our_rule: bool) -> Iterator[None]:
    """The machine's udev with its own rules, and with ours."""
    RULES.mkdir(parents=True, exist_ok=True)
    if with_our_rule:
        shutil.copy(rule_file(), RULES)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind("\0udev-is-ready")
        told.settimeout(60)
        daemon = subprocess.Popen(
            ["/lib/systemd/systemd-udevd"],
            stderr=subprocess.DEVNULL,
            env=os.environ | {"NOTIFY_SOCKET": "@udev-is-ready"},
        )
        try:
            while b"READY=1" not in told.recv(4096):
                pass
            yield
            run("udevadm", "settle", "--timeout=60")
        finally:
            daemon.terminate()
            daemon.wait(60)
            # LVM takes the socket for a udev that answers.
            shutil.rmtree("/run/udev", ignore_errors=True)
            shutil.rmtree("/dev/disk", ignore_errors=True)


def links() -> set[str]:
    return {str(path) for path in Path("/dev/disk").rglob("*") if path.is_symlink()}


@pytest.fixture
def namesake() -> bytes:
    """The start of a disk with a group of the same name as ours, made elsewhere."""
    clear()
    return group_of_a_guest(VG)


def test_groups_that_a_guest_makes_are_not_the_hosts(
    namesake: bytes, guest: Instance, careless_host: None, open_store: Open
) -> None:
    assert guest.scratch is not None
    write(guest.path, group_of_a_guest("vg9"))
    write(guest.scratch, namesake)
    control = run("pvs", "--config", NO_UDEV, check=False)
    assert "vg9" in control.stdout, "this host would take it"
    LVM_CONF.write_text(LVM_CONF.read_text().replace("scan_lvs = 1", "scan_lvs = 0"))
    shown = ""
    for tool in (
        ["pvs", "-a"], ["vgscan", "--mknodes"], ["pvscan", "--cache", "-aay"],
        ["vgchange", "-aay"], ["vgs"], ["lvs", "-a"],
    ):  # fmt: skip
        done = run(tool[0], "--config", NO_UDEV, *tool[1:])
        shown += done.stdout + done.stderr
    assert "vg9" not in shown
    assert "evil" not in shown + run("dmsetup", "ls").stdout
    assert "uplicate" not in shown
    assert not Path("/dev/vg9").exists()
    again = open_store()
    assert again.instances() == (guest,)
    sealed(again, B)


def test_our_calls_do_not_look_even_where_the_host_does(
    store: LvmStore, guest: Instance, careless_host: None, open_store: Open
) -> None:
    """Also not at a copy of our own physical volume, with the same UUIDs."""
    with DISKS[0].open("rb") as disk:
        os.posix_fadvise(disk.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        write(guest.path, disk.read(2 * MIB))
    control = run("pvs", "--config", NO_UDEV, check=False)
    assert f"Not using device {guest.path} for PV" in control.stderr, "this host has to choose"
    again = open_store()
    assert again.instances() == (guest,)
    assert [one.percent > 20 for one in again.snapshots()] == [True]
    sealed(again, B)
    again.drop_instance(guest.lease)
    assert {volume.infohash for volume in again.volumes()} == {A, B}


def test_udev_leaves_what_guests_write_alone(store: LvmStore) -> None:
    volume = sealed(store, size_bytes=8 * MIB)

    def written(lease: str) -> set[str]:
        made = store.make_instance(volume, lease, cow_bytes=8 * MIB, scratch_bytes=2 * MIB)
        assert made.scratch is not None
        run("mkfs.ext4", "-q", "-F", "-L", LABEL, str(made.path))
        write(made.scratch, raid_member(), 4096)
        seen = [run("blkid", "-p", "-o", "value", "-s", "TYPE", str(path)).stdout.strip()
                for path in (made.path, made.scratch)]  # fmt: skip
        assert seen == ["ext4", "linux_raid_member"]
        # As after a boot, or when anybody opens and closes it.
        for path in (made.path, made.scratch):
            run("udevadm", "trigger", "--settle", "--action=change", str(path.resolve()))
        told = run("udevadm", "info", str(made.path)).stdout
        told += run("udevadm", "info", str(made.scratch)).stdout
        return {line for line in told.splitlines() if "ID_FS" in line} | links()

    with udev(with_our_rule=False):
        control = written("l-000001")
        store.drop_instance("l-000001")
    assert any(LABEL in one for one in control), "this host would mount it as its own"
    with udev(with_our_rule=True):
        assert written("l-000002") == set()
        assert run("blkid", "-L", LABEL, check=False).returncode == 0, "a scan by hand still finds"
        evaluate = Path("/run/tmp/blkid.conf")
        evaluate.write_text("EVALUATE=udev\n")
        os.environ["BLKID_CONF"] = str(evaluate)
        try:
            assert run("blkid", "-L", LABEL, check=False).stdout == ""
        finally:
            del os.environ["BLKID_CONF"]
        store.drop_instance("l-000002")
    assert store.instances() == ()


def test_doctor_is_told_of_all_that_is_wrong_with_the_group(
    store: LvmStore, guest: Instance, careless_host: None
) -> None:
    run("lvcreate", "--config", NO_UDEV, "-n", f"distrib-{B}", "-L", "1m", VG)
    with pytest.raises(OSError, match="Input/output error"):
        over = store.make_instance(store.volumes()[0], "l-000002", cow_bytes=1, scratch_bytes=0)
        write(over.path, os.urandom(MIB))
    found = {one.code: one for one in examine(LvmSettings(vg=VG), known={A, "l-000002"})}
    assert set(found) == {
        "lvm-foreign-volume",
        "lvm-host-scans-guests",
        "lvm-snapshot-overflowed",
        "lvm-volume-leaked",
    }
    assert found["lvm-foreign-volume"].command.startswith(f"lvrename {VG}/distrib-{B} ")
    assert found["lvm-volume-leaked"].command == "distrib-agent gc"
    for repair in ("lvm-foreign-volume", "lvm-host-scans-guests"):
        run("sh", "-c", found[repair].command)
    left = {one.code for one in examine(LvmSettings(vg=VG), known={A, "l-000002"})}
    assert left == {"lvm-snapshot-overflowed", "lvm-volume-leaked"}
    (gone,) = examine(LvmSettings(vg="vg9"))
    assert (gone.code, gone.command) == ("lvm-group-unusable", "vgs vg9")
