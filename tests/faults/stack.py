"""What a node's cache stands on, over one device: put up, taken down, put up over another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.cache.file import FileStore
from agent.cache.lvm import LvmStore
from agent.cache.store import Store
from tests.faults.log_writes import SECTOR
from tests.uml.disks import NO_UDEV, run

MIB = 1 << 20
SIZE = 64 * MIB
VG = "vgcut"
PV = Path("/dev/mapper/cutpv")
STATE = Path("/dev/mapper/cutstate")
STATE_BYTES = 16 * MIB

EXT4 = ("mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0")
LVM = (
    "--config",
    f'{NO_UDEV} devices{{filter=["a|^{PV}$|","r|.*|"]}} backup{{backup=0 archive=0}}',
)


METADATA = range(STATE_BYTES, STATE_BYTES + MIB)
"""Where LVM keeps its metadata. It never flushes them, neither between the text and the header that
points at it nor afterwards: on a disk whose cache forgets and reorders, a cut there can cost the
whole group (`vgck --updatemetadata` mends it), with this product or without."""


class Stack:
    """One kind of store, with the agent's state on the same device. ``home`` is where the state
    is, always by the same name: leases name their instances by it."""

    def __init__(self, kind: str, home: Path) -> None:
        self.kind = kind
        self.home = home

    @property
    def in_order(self) -> range:
        """What is only lost in order."""
        return METADATA if self.kind == "lvm" else range(0)

    def make(self, device: Path) -> None:
        """File system and volume group, on a device of zeros."""
        if self.kind == "file":
            run(*EXT4, str(device))
            return
        with self._split(device):
            run(*EXT4, str(STATE))
            run("vgcreate", "-y", "-q", "-s", "64k", *LVM, VG, str(PV))

    @contextmanager
    def up(self, device: Path) -> Iterator[list[Store]]:
        """Mounted; the journal is replayed here. The store finishes what was interrupted."""
        self.home.mkdir(exist_ok=True)
        if self.kind == "file":
            with self._mounted(device):
                yield [FileStore(self.home / "cache", 48 * MIB)]
            return
        with self._split(device), self._mounted(STATE):
            try:
                yield [LvmStore(VG, self.home / "lvm", pvs=[PV])]
            finally:
                run("vgchange", "-an", "-q", *LVM, VG)

    def volumes(self) -> set[str]:
        """The names of the logical volumes that are there, whosever they are."""
        return set(run("lvs", "--noheadings", "-o", "lv_name", *LVM, VG).stdout.split())

    @contextmanager
    def _mounted(self, device: Path) -> Iterator[None]:
        run("mount", "-t", "ext4", str(device), str(self.home))
        try:
            yield
        finally:
            run("umount", str(self.home))

    @contextmanager
    def _split(self, device: Path) -> Iterator[None]:
        """The first part for the state, the rest for the group."""
        state, rest = STATE_BYTES // SECTOR, (SIZE - STATE_BYTES) // SECTOR
        run("dmsetup", "create", STATE.name, "--table", f"0 {state} linear {device} 0")
        run("dmsetup", "create", PV.name, "--table", f"0 {rest} linear {device} {state}")
        run("dmsetup", "mknodes")
        try:
            yield
        finally:
            run("dmsetup", "remove", "--retry", PV.name)
            run("dmsetup", "remove", "--retry", STATE.name)
