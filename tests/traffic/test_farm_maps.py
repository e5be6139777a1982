"""The controller tells the farm when it has changed, and only then; caps outlive a restart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from distrib.bus.messages import Caps, ClassCaps, FarmMap
from distrib.bus.schema import decode
from distrib.bus.topics import Topics
from distrib.db.models import Node
from distrib.db.schema import upgrade
from distrib.db.session import Database, sqlite_url
from distrib.errors import ConfigInvalid
from distrib.rollout.farm_map import FarmMaps, places_of
from distrib.rollout.plan import InventoryNode
from distrib.trust.envelope import key_id, open_envelope

KEY = Ed25519PrivateKey.generate()
NOW = datetime(2026, 3, 1, tzinfo=UTC)


class FakeBus:
    """Keeps what is retained, in order."""

    def __init__(self) -> None:
        self.topics = Topics()
        self.said: list[FarmMap] = []

    def retain(self, topic: str, payload: bytes) -> None:
        assert topic == self.topics.farm
        public = KEY.public_key()
        text = open_envelope(payload, kind="farm", keys={key_id(public): public})
        self.said.append(decode(FarmMap, text.encode(), what="farm"))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(sqlite_url(tmp_path / "distrib.db"))
    upgrade(opened)
    yield opened
    opened.close()


@pytest.fixture
def bus() -> FakeBus:
    return FakeBus()


@pytest.fixture
def controller(tmp_path: Path, database: Database, bus: FakeBus) -> Callable[[], FarmMaps]:
    """Calling it again is a restart."""

    def start() -> FarmMaps:
        return FarmMaps(
            database=database,
            bus=bus,
            key=KEY,
            state_dir=tmp_path,
            foreign=("198.51.100.7",),
            caps=ClassCaps(elsewhere=Caps(download_bps=1000, upload_bps=1000)),
            clock=lambda: NOW,
        )

    return start


def add(database: Database, name: str, address: str, **labels: str) -> None:
    with database.transaction() as session:
        row = Node(name=name, address=address, rack="r1", labels=labels)
        row.added_at, row.added_by = NOW, "admin"
        session.add(row)


def test_a_farm_of_more_racks_or_scattered_addresses_than_a_map_has_room_for_is_told_whole() -> (
    None
):
    scattered = [f"10.{number >> 8}.{number & 255}.1" for number in range(5000)]
    one_rack = [InventoryNode(f"wn{n}", rack="r", address=at) for n, at in enumerate(scattered)]
    racks = [InventoryNode(f"wn{n}", rack=f"r{n}", address=at) for n, at in enumerate(scattered)]
    for inventory in (one_rack, racks):
        places = places_of(inventory)
        assert sorted(at for place in places for at in place.networks) == sorted(scattered)


async def test_a_map_is_told_when_the_farm_has_changed_and_not_before(
    controller: Callable[[], FarmMaps], database: Database, bus: FakeBus
) -> None:
    maps = controller()
    await maps.renew()
    add(database, "wn1", "192.0.2.0", room="north")
    add(database, "wn2", "192.0.2.1", room="north")
    await maps.renew()
    await maps.renew()
    empty, full = bus.said
    assert empty.places == ()
    assert [(one.rack, one.room, one.networks) for one in full.places] == [
        ("r1", "north", ("192.0.2.0/31",))
    ]
    assert full.generation > empty.generation >= int(NOW.timestamp())
    assert full.foreign == ("198.51.100.7",)


async def test_caps_are_told_at_once_kept_over_a_restart_and_given_back(
    controller: Callable[[], FarmMaps], database: Database, bus: FakeBus
) -> None:
    maps = controller()
    await maps.set_caps({"rack": Caps(download_bps=5, upload_bps=6)}, "admin")
    assert bus.said[-1].caps.rack == Caps(download_bps=5, upload_bps=6)
    assert bus.said[-1].caps.elsewhere.download_bps == 1000
    again = controller()
    await again.renew()
    assert bus.said[-1].caps.rack.upload_bps == 6
    assert bus.said[-1].generation > bus.said[-2].generation
    await again.set_caps({"rack": None, "elsewhere": Caps()}, "admin")
    assert bus.said[-1].caps == ClassCaps()
    assert again.view()["set_at_run_time"] == ["elsewhere"]


async def test_a_damaged_file_of_caps_is_one_line(
    controller: Callable[[], FarmMaps], tmp_path: Path
) -> None:
    for content in ("{", json.dumps({"rack": {"download_bps": -1}})):
        (tmp_path / "caps.json").write_text(content)
        with pytest.raises(ConfigInvalid) as caught:
            await controller().renew()
        assert "caps.json" in caught.value.message
        assert "\n" not in caught.value.message
