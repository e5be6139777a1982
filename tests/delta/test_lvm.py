"""From one logical volume to another, and from a file to a logical volume."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cache.file import FileStore
from agent.cache.lvm import LvmStore
from distrib.bus.messages import State
from tests.delta.conftest import SIZE
from tests.delta.node import MIB, Node
from tests.delta.test_delta import FETCHED, hold_old
from tests.pull.conftest import Published, seeding
from tests.uml.disks import VG, volume_group

pytestmark = pytest.mark.uml


@pytest.fixture
def both_stores(tmp_path: Path) -> Iterator[Node]:
    with volume_group():
        lvm = LvmStore(VG, tmp_path / "lvm")
        yield Node(tmp_path / "node", stores=(FileStore(tmp_path / "cache", 64 * MIB), lvm))


@pytest.mark.parametrize("older", ["lvm", "file"])
async def test_a_logical_volume_starts_from_the_older_version(
    both_stores: Node, old: Published, new: Published, older: str
) -> None:
    node = both_stores
    async with node.running():
        await hold_old(node, old, store=older)
        async with seeding(new) as seeder:
            record = await node.pull(new, "2.0", (seeder,), store="lvm")
    assert record.state is State.READY, record.text
    assert node.bytes_of(new) == new.data
    assert (record.fetched_bytes, record.copied_bytes) == (FETCHED, SIZE - FETCHED)
    assert not node.cache.volume(new.info.infohash).path.is_file()
