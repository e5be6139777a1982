"""A new version of an image on nodes that have the older one: they fetch what changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.farm.farm import Farm
from tests.farm.process import eventually
from tests.stories.test_rollout import sha256, start, wait

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

MIB = 1 << 20
PIECE = 64 << 10
SIZE = 16 * MIB
# Nodes that join the farm later are warmed by rollouts to all.
FIRST_FOUR = "wn1,wn2,wn3,wn4"


def spoil(path: Path, at: int) -> None:
    """Flip a bit as a disk does: unnoticed."""
    was = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def test_a_rollout_of_a_new_version_brings_every_node_only_what_changed(
    farm: Farm, tmp_path: Path
) -> None:
    older = farm.publish(SIZE, alias="older")
    wait(farm, start(farm, older, FIRST_FOUR))
    data = bytearray(older.file.read_bytes())
    changed = range(MIB, SIZE, 4 * MIB)
    for at in changed:
        data[at : at + 100] = os.urandom(100)
    file = tmp_path / "second.raw"
    file.write_bytes(data)
    newer = farm.endorse(file, alias="newer", identifier=older.identifier)
    farm.approve(newer)
    unlucky = next(iter(farm.nodes.values()))
    spoil(unlucky.volume(older), 2 * MIB + 5)
    done = wait(farm, start(farm, newer, FIRST_FOUR))
    rows = done["nodes"]
    assert isinstance(rows, list)
    assert len(rows) == len(farm.nodes)
    for row in rows:
        assert row["copied_bytes"] == SIZE - len(changed) * PIECE, row
        bad = int(row["node"] == unlucky.name)
        assert row["fetched_bytes"] <= 2 * (len(changed) + bad) * PIECE, row
    for node in farm.nodes.values():
        assert node.state(newer) == "ready"
        assert sha256(node.volume(newer)) == newer.sha256
    # What the copy brought to light is repaired as well.
    eventually("repaired", lambda: sha256(unlucky.volume(older)) == older.sha256, limit_s=30)
    eventually("ready again", lambda: unlucky.state(older) == "ready", limit_s=30)
