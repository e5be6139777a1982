"""Orders that meet a pull under way."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent import puller as puller_module
from agent.puller import Puller
from distrib.bus.messages import Cancel, Caps, DesiredImage, NodeReason, Orders, Peer, State
from distrib.swarm.torrent import info_of
from tests.delta.node import MIB, UUID, Node, publish, site_image
from tests.pull.conftest import Published


@pytest.fixture
def published(tmp_path: Path) -> Published:
    return publish(tmp_path / "image", os.urandom(MIB))


def test_peers_of_every_kind_are_known_by_name(tmp_path: Path, published: Published) -> None:
    kinds = ("parents", "fallbacks", "neighbours", "children", "second_children")
    peers = {
        kind: (Peer(node=f"wn{n}", address=f"192.0.2.{n}", port=6881),)
        for n, kind in enumerate(kinds)
    }
    infohash = published.info.infohash
    wanted = DesiredImage(identifier=UUID, version="1.0", infohash=infohash, **peers)
    authority = SimpleNamespace(desired=SimpleNamespace(images=(wanted,)))
    puller = Puller(
        Node(tmp_path / "node")._parts(),
        cast(Any, authority),
        own_caps=Caps(),
        want_torrent=lambda _: None,
        changed=lambda: None,
        clock=lambda: datetime.now(UTC),
    )
    named = [puller.node_at(infohash, f"192.0.2.{n}") for n in range(6)]
    assert named == ["wn0", "wn1", "wn2", "wn3", "wn4", None]


async def test_a_pull_that_was_cancelled_by_order_is_not_begun_again_behind_its_back(
    tmp_path: Path, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path / "node")
    image = site_image(published.torrent, published.data, "1.0")
    infohash = image.infohash
    node.torrents.accept(info_of(published.torrent), image)
    wanted = DesiredImage(identifier=UUID, version="1.0", infohash=infohash, rollout="r-1")
    authority = SimpleNamespace(
        site_list=object(),
        desired=SimpleNamespace(images=(wanted,)),
        entry=lambda *_: image,
        image=lambda _: image,
        refused=Counter[str](),
    )
    looked, begun = threading.Event(), asyncio.Event()
    async with node.running():
        puller = Puller(
            node._parts(),
            cast(Any, authority),
            own_caps=Caps(),
            want_torrent=lambda _: None,
            changed=lambda: begun.set() if puller.pulls else None,
            clock=lambda: datetime.now(UTC),
        )
        look = puller._reconcile

        async def looking() -> None:
            await look()
            looked.set()

        # The end of a pull takes until all was looked at again.
        monkeypatch.setattr(puller, "_reconcile", looking)
        monkeypatch.setattr(puller_module, "give_back", lambda: looked.wait(10))
        task = asyncio.create_task(puller.run())
        puller.wake()
        async with asyncio.timeout(20):
            await begun.wait()
            await asyncio.to_thread(looked.wait)
            looked.clear()
            now = datetime.now(UTC)
            orders = Orders(
                node="wn001",
                issued_at=now,
                expires_at=now + timedelta(minutes=1),
                sequence=1,
                orders=(Cancel(infohash=infohash),),
            )
            await puller.obey(orders)
        assert puller.pulls == {}
        record = node.cache.record(infohash)
        assert record is not None
        assert (record.state, record.reason) == (State.FAILED, NodeReason.CANCELLED)
        looked.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
