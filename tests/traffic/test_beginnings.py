"""What a transfer may do is so from its first byte, before anything was measured."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from agent.authority import Authority
from agent.traffic import HostTraffic, Link
from distrib.bus.messages import Caps, Desired, DesiredImage, Traffic
from distrib.swarm.pacing import FLOOR_SHARE
from distrib.swarm.torrent import info_of
from tests.pull.conftest import NODE, Published, published, seeding, session

__all__ = ["published"]

LINK_BPS = 12_500_000
LIMIT_BPS = 500_000
INFOHASH = "a1" * 32


def traffic(interface: str | None, **wanted: object) -> HostTraffic:
    image = DesiredImage.model_validate(
        {
            "identifier": "7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f6c11",
            "version": "1.0",
            "infohash": INFOHASH,
        }
        | wanted
    )
    issued_at = datetime(2026, 3, 1, tzinfo=UTC)
    desired = Desired(node="wn1", issued_at=issued_at, generation=1, images=(image,))
    return HostTraffic(
        [],
        cast(Authority, SimpleNamespace(desired=desired)),
        address=NODE,
        link=Link(interface, LINK_BPS),
        own_caps=Caps(download_bps=0, upload_bps=3_000_000),
        now_s=lambda: 0.0,
    )


@pytest.mark.parametrize(
    ("interface", "wanted", "limits"),
    [
        ("eth0", {}, (0, 3_000_000)),
        ("eth0", {"caps": Caps(download_bps=7, upload_bps=8)}, (7, 8)),
        ("eth0", {"traffic": Traffic.BACKGROUND}, (250_000, 250_000)),
        ("eth0", {"traffic": Traffic.BACKGROUND, "caps": Caps(download_bps=7)}, (7, 250_000)),
        # Where nothing can be measured nothing makes way.
        (None, {"traffic": Traffic.BACKGROUND}, (0, 3_000_000)),
    ],
)
def test_an_image_begins_at_its_caps_and_a_background_one_carefully(
    interface: str | None, wanted: dict[str, object], limits: tuple[int, int]
) -> None:
    assert LINK_BPS * FLOOR_SHARE == 250_000
    assert traffic(interface, **wanted).first_limits_bps(INFOHASH) == limits
    assert traffic(interface, **wanted).first_limits_bps("b2" * 32) == (0, 3_000_000)


async def test_nothing_comes_faster_than_the_first_limit(
    tmp_path: Path, published: Published
) -> None:
    async with seeding(published) as seeder, session(NODE) as own:
        own.first_limits_bps = lambda _: (LIMIT_BPS, 0)
        (tmp_path / "image.raw").write_bytes(bytes(published.info.size_bytes))
        peer = (seeder.address, seeder.port)
        transfer = own.add(published.info, info_of(published.torrent), tmp_path, peers=[peer])
        began_s = asyncio.get_running_loop().time()
        while transfer.done_bytes < LIMIT_BPS:
            await transfer.moved()
        # A second's worth in no less than half of one; without limit all of it takes as long.
        assert asyncio.get_running_loop().time() - began_s >= 0.5
        transfer.throttle(download_bps=0, upload_bps=0)
        await transfer.complete()
    assert (tmp_path / "image.raw").read_bytes() == published.data
