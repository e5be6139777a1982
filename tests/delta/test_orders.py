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
from distrib.bus.messages import Cancel, Caps, DesiredImage, NodeReason, Orders, State
from distrib.swarm.torrent import info_of
from tests.delta.node import MIB, UUID, Node, publish, site_image
from tests.pull.conftest import Published


@pytest.fixture
def published(tmp_path: Path) -> Published:
    return publish(tmp_path / "image", os.urandom(MIB))


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
