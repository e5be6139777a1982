"""A new version of an image on nodes that have the older one: they fetch what changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.farm.farm import Farm
from tests.stories.test_rollout import sha256, start, wait

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

MIB = 1 << 20
PIECE = 64 << 10
SIZE = 16 * MIB


def test_a_rollout_of_a_new_version_brings_every_node_only_what_changed(
    farm: Farm, tmp_path: Path
) -> None:
    older = farm.publish(SIZE, alias="first")
    wait(farm, start(farm, older))
    data = bytearray(older.file.read_bytes())
    changed = range(MIB, SIZE, 4 * MIB)
    for at in changed:
        data[at : at + 100] = os.urandom(100)
    file = tmp_path / "second.raw"
    file.write_bytes(data)
    newer = farm.endorse(file, alias="second", identifier=older.identifier)
    farm.approve(newer)
    done = wait(farm, start(farm, newer))
    rows = done["nodes"]
    assert isinstance(rows, list)
    assert len(rows) == len(farm.nodes)
    for row in rows:
        assert row["copied_bytes"] == SIZE - len(changed) * PIECE, row
        assert row["fetched_bytes"] <= 2 * len(changed) * PIECE, row
    for node in farm.nodes.values():
        assert node.state(newer) == "ready"
        assert sha256(node.volume(newer)) == newer.sha256
