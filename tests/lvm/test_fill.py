"""A job that writes more than it asked for: extended, told, ended."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.cache.holders import holder_of_pid
from agent.cache.lvm import LvmStore
from agent.cache.records import ImageVersion
from agent.settings import LvmSettings
from agent.watching import Watching
from distrib.bus.messages import EventKind, NodeReason, State
from distrib.errors import NoSpace
from tests.cache.conftest import Clock
from tests.cache.node import Node
from tests.lvm.conftest import MIB, Open, sealed, write

pytestmark = pytest.mark.uml
IMAGE = ImageVersion(
    infohash="1" * 64,
    identifier="00000001-0000-4000-8000-000000000000",
    version="1.1",
    sha512="1" * 128,
    size_bytes=8 * MIB,
    piece_bytes=1 << 18,
)


def test_a_snapshot_that_fills_is_extended_up_to_its_limit(store: LvmStore) -> None:
    made = store.make_instance(sealed(store), "l-000001", cow_bytes=MIB, scratch_bytes=0)
    write(made.path, os.urandom(MIB // 2))
    (half,) = store.snapshots()
    assert 50 <= half.percent < 60
    os.chown(made.path, 1234, -1)
    grown = store.extend("l-000001", limit_bytes=2 * MIB)
    assert grown.cow_bytes == 3 * MIB // 2
    assert grown.percent < half.percent
    assert made.path.stat().st_uid == 1234, "it is still its job's"
    assert store.extend("l-000001", limit_bytes=2 * MIB).cow_bytes == 2 * MIB
    with pytest.raises(NoSpace, match="may have 2097152"):
        store.extend("l-000001", limit_bytes=2 * MIB)


def test_the_job_that_overflows_is_told_and_ended_and_the_others_go_on(
    open_store: Open, tmp_path: Path
) -> None:
    store = open_store()
    node = Node(tmp_path, Clock())
    node.restart(store)
    node.pull(IMAGE)
    told: list[tuple[EventKind, str, NodeReason, str]] = []
    watching = Watching(
        [store],
        node.cache,
        LvmSettings(extend_at_percent=50, extend_limit_bytes=3 * MIB // 2),
        tell=lambda kind, lease, reason, text: told.append((kind, lease.lease, reason, text)),
    )

    greedy, modest = (
        node.cache.lease(IMAGE.infohash, holder=me, user="bob", cow_bytes=MIB)
        for me in [holder_of_pid(os.getpid())] * 2
    )
    write(Path(modest.device), b"mine")
    write(Path(greedy.device), os.urandom(MIB * 3 // 4))
    watching.look_after()
    assert told == [], "extended in time"
    write(Path(greedy.device), os.urandom(MIB // 2), MIB)
    watching.look_after()
    watching.look_after()
    assert [(kind, name) for kind, name, _, _ in told] == [(EventKind.FILLING, greedy.lease)]
    with pytest.raises(OSError, match="Input/output error"):
        write(Path(greedy.device), os.urandom(4 * MIB), 2 * MIB)
    watching.look_after()
    kind, name, reason, text = told[-1]
    assert (kind, name, reason) == (EventKind.FAILED, greedy.lease, NodeReason.NO_SPACE)
    assert "overflowed" in text
    assert [one.lease for one in node.cache.leases()] == [modest.lease]
    assert [one.lease for one in store.instances()] == [modest.lease]
    assert Path(modest.device).read_bytes()[:4] == b"mine"
    assert node.state(IMAGE) is State.LEASED
    assert len(told) == 2
