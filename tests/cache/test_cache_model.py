"""The cache against a model of it, whatever is done in whatever order.

2,000 operations for each store in the ordinary tests, always the same; 40,000 others in the long
ones.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import invariant, run_state_machine_as_test

from agent.cache.device import DeviceStore
from agent.cache.file import FileStore
from tests.cache.images import COW
from tests.cache.model import CacheMachine

DEVICE_BYTES = 512 << 10


class DeviceMachine(CacheMachine):
    """Over store ``device``: a whole device for each image, instances with a quota of their own."""

    pool: tuple[Path, ...] = ()

    def make_store(self) -> FileStore | DeviceStore:
        return DeviceStore(
            self.pool,
            self.root / "devices",
            instances_dir=self.root / "instances",
            instances_capacity_bytes=6 * COW,
        )

    def teardown(self) -> None:
        for volume in self.store.volumes():  # the flag is the device's, not the test's
            subprocess.run(["blockdev", "--setrw", str(volume.path)], check=True)
        super().teardown()

    def flip(self, path: Path) -> None:
        subprocess.run(["blockdev", "--setrw", str(path)], check=True)
        with path.open("r+b") as device:
            device.write(b"\xff")
            os.fsync(device.fileno())
        subprocess.run(["blockdev", "--setro", str(path)], check=True)

    def free_for_instances(self) -> int:
        return 6 * COW - sum(
            max(COW, one.path.stat().st_blocks * 512) for one in self.store.instances()
        )

    @invariant()
    def used_is_the_sum_and_within_the_quota(self) -> None:
        there = self.store.volumes()
        taken = {volume.path.resolve() for volume in there}
        assert len(taken) == len(there)
        instances = sum(max(COW, one.path.stat().st_blocks * 512) for one in self.store.instances())
        assert self.store.space().used_bytes == len(there) * DEVICE_BYTES + instances


ORDINARY = settings(
    max_examples=55,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    # Shrinking takes longer than a test may: a failure prints the steps as they were found.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
LONG = settings(ORDINARY, max_examples=1100, derandomize=False, print_blob=True)


def test_whatever_is_done_to_store_file_the_invariants_hold() -> None:
    run_state_machine_as_test(CacheMachine, settings=ORDINARY)


@pytest.mark.root
def test_whatever_is_done_to_store_device_the_invariants_hold(
    devices: Callable[..., list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeviceMachine, "pool", tuple(devices(*[DEVICE_BYTES] * 3)))
    run_state_machine_as_test(DeviceMachine, settings=ORDINARY)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_whatever_is_done_for_long_the_invariants_hold() -> None:
    run_state_machine_as_test(CacheMachine, settings=LONG)
