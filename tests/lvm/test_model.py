"""The model of the cache (tests/cache/model.py) over a real volume group: few operations in the
ordinary tests, since each takes several calls of LVM; hundreds in the long ones."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.stateful import invariant, run_state_machine_as_test

from agent.cache.lvm import LvmStore
from agent.cache.lvm_inventory import LogicalVolume
from tests.cache.images import CAPACITY, COW
from tests.cache.model import CacheMachine
from tests.cache.test_cache_model import ORDINARY
from tests.uml.disks import DISKS, NO_UDEV, VG, run, volume_group

pytestmark = pytest.mark.uml
_BLOCK = 4096
_SECTOR = 512


def what_counts(lv: LogicalVolume) -> tuple[object, ...]:
    return lv.name, lv.size_bytes, lv.tags, lv.origin, lv.number, lv.active, lv.read_only


class LvmMachine(CacheMachine):
    """Over store ``lvm``. All sizes are whole extents of 32 KiB, so that accounts are exact."""

    def make_store(self) -> LvmStore:  # type: ignore[override]
        return LvmStore(VG, self.root / "lvm", capacity_bytes=CAPACITY)

    def teardown(self) -> None:
        run("lvremove", "--config", NO_UDEV, "-q", "-y", VG)
        super().teardown()

    def flip(self, path: Path) -> None:
        """On the disk below: the logical volume cannot be written."""
        name = path.resolve().name
        tables = run("dmsetup", "table").stdout.splitlines()
        names = {path.readlink().name, name}
        wanted = {f"{VG}-" + one.replace("-", "--") + end for one in names for end in ("", "-real")}
        found = [line.split(": ", 1)[1].split() for line in tables if line.split(":")[0] in wanted]
        (offset,) = [int(table[4]) for table in found if table[2] == "linear"]
        disk = os.open(DISKS[0], os.O_RDWR | os.O_DIRECT)
        with mmap.mmap(-1, _BLOCK) as block:
            block[0] = 0xFF
            os.pwrite(disk, block, offset * _SECTOR)
        os.close(disk)

    @invariant()
    def used_is_the_sum_and_within_the_quota(self) -> None:
        used = sum(v.size_bytes for v in self.store.volumes()) + len(self.held) * COW
        assert self.store.space().used_bytes == used <= CAPACITY

    @invariant()
    def what_the_store_remembers_is_what_lvm_has(self) -> None:
        assert isinstance(self.store, LvmStore)
        remembered = self.store._group.recent()
        found = self.store._group.look()
        assert remembered.free_extents == found.free_extents
        assert set(map(what_counts, remembered.lvs)) == set(map(what_counts, found.lvs))


@pytest.fixture(autouse=True)
def group() -> Iterator[str]:
    with volume_group(extent="32k") as name:
        yield name


def test_a_few_dozen_operations_keep_the_invariants() -> None:
    run_state_machine_as_test(
        LvmMachine, settings=settings(ORDINARY, max_examples=2, stateful_step_count=12)
    )


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_hundreds_of_operations_keep_the_invariants() -> None:
    run_state_machine_as_test(
        LvmMachine, settings=settings(ORDINARY, max_examples=10, stateful_step_count=40)
    )
