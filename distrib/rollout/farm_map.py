"""Who belongs to the farm: the map that nodes go by, made from the inventory, told when it changes.

``farm_of`` is pure. ``FarmMaps`` keeps what an operator has set at run time in one file of the
state directory, and the generation in the database: it is there before the map leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from distrib.bus.messages import Caps, ClassCaps, FarmMap, Place
from distrib.bus.mqtt import Bus
from distrib.bus.schema import describe, encode
from distrib.db.audit import record
from distrib.db.counters import rise
from distrib.db.session import Database
from distrib.errors import ConfigInvalid, DistribError
from distrib.rollout.plan import InventoryNode
from distrib.rollout.records import load_inventory
from distrib.trust.envelope import seal

log = structlog.get_logger(__name__)

ROOM_LABEL = "room"
FARM_GENERATION = "farm-generation"
LOOK_AGAIN_S = 10.0
_SET_AT_RUN_TIME = "caps.json"

MAX_PLACES = MAX_NETWORKS = 4096
"""What a map has room for (docs/formats/messages.md)."""

TIERS = ("rack", "room", "elsewhere")


def places_of(inventory: Iterable[InventoryNode]) -> tuple[Place, ...]:
    """The racks with their networks: exactly the addresses of their nodes, as few as say so."""
    members: dict[tuple[str, str], set[str]] = defaultdict(set)
    for node in inventory:
        if node.address:
            members[node.labels.get(ROOM_LABEL, ""), node.rack[:63]].add(node.address)
    places = [
        Place(rack=rack, room=room[:63], networks=part)
        for (room, rack), addresses in sorted(members.items())
        for part in _parts(collapsed(addresses))
    ]
    if len(places) <= MAX_PLACES:
        return tuple(places)
    # Who belongs to the farm matters more than who is near.
    everybody = collapsed(address for addresses in members.values() for address in addresses)
    return tuple(Place(networks=part) for part in _parts(everybody))


def _parts(networks: tuple[str, ...]) -> Iterable[tuple[str, ...]]:
    return (networks[at : at + MAX_NETWORKS] for at in range(0, len(networks), MAX_NETWORKS))


def collapsed(addresses: Iterable[str]) -> tuple[str, ...]:
    """The fewest networks that hold these addresses and no other; single ones without a length."""
    parsed = [ipaddress.ip_address(address) for address in addresses]
    networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = [
        *ipaddress.collapse_addresses(
            ipaddress.IPv4Network(one) for one in parsed if isinstance(one, ipaddress.IPv4Address)
        ),
        *ipaddress.collapse_addresses(
            ipaddress.IPv6Network(one) for one in parsed if isinstance(one, ipaddress.IPv6Address)
        ),
    ]
    return tuple(
        str(one.network_address) if one.num_addresses == 1 else str(one) for one in networks
    )


def farm_of(
    inventory: Iterable[InventoryNode],
    *,
    foreign: Sequence[str],
    caps: ClassCaps,
    generation: int,
    now: datetime,
) -> FarmMap:
    """The map."""
    return FarmMap(
        issued_at=now,
        generation=generation,
        places=places_of(inventory),
        foreign=tuple(foreign),
        caps=caps,
    )


class FarmMaps:
    """The map of one site. ``run`` publishes it whenever it has changed; ``changed`` says when to
    look (else every ``LOOK_AGAIN_S``)."""

    def __init__(
        self,
        *,
        database: Database,
        bus: Bus,
        key: Ed25519PrivateKey,
        state_dir: Path,
        foreign: Sequence[str],
        caps: ClassCaps,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._bus = bus
        self._key = key
        self._path = state_dir / _SET_AT_RUN_TIME
        self._foreign = foreign
        self._configured = caps
        self._clock = clock
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()
        self._told: object = None
        self._envelope = b""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.renew()
            except DistribError as error:
                log.warning("farm-not-told", code=error.code, why=error.message)
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN_S):
                    await self._changed.wait()

    def changed(self) -> None:
        """Inventory or caps may be others now. From the loop's thread."""
        self._changed.set()

    def tell(self) -> None:
        """Say it once more: to a broker that may have lost it."""
        if self._envelope:
            self._bus.retain(self._bus.topics.farm, self._envelope)

    async def renew(self) -> None:
        """Publish the map if it is another one than before."""
        async with self._turn:
            made = await asyncio.to_thread(self._made)
            if made is not None:
                self._envelope = made
                self.tell()

    def _made(self) -> bytes | None:
        caps = self.caps()
        with self._database.reading() as session:
            inventory = load_inventory(session)
        now = self._clock()
        content = (places_of(inventory.values()), caps)
        if content == self._told:
            return None
        with self._database.transaction() as session:
            generation = rise(session, FARM_GENERATION, at_least=int(now.timestamp()))
        farm = farm_of(
            inventory.values(), foreign=self._foreign, caps=caps, generation=generation, now=now
        )
        envelope = seal("farm", encode(farm).decode(), self._key)
        self._told = content
        log.info("farm-told", generation=generation, places=len(farm.places))
        return envelope

    # -- caps -----------------------------------------------------------------------------------

    def caps(self) -> ClassCaps:
        """In force: what was set at run time, else what the settings say. Raises ConfigInvalid."""
        held = self._configured.model_dump()
        try:
            return ClassCaps.model_validate(held | self._set())
        except ValidationError as error:
            raise ConfigInvalid(
                f"{self._path}: {describe(error)}", hint="remove it, or set the caps again"
            ) from None

    async def set_caps(self, wanted: Mapping[str, Caps | None], actor: str) -> None:
        """Cap tiers from now on; None: as the settings say. Nodes are told at once."""

        def save() -> None:
            held = self._set()
            for tier, caps in wanted.items():
                if caps is None:
                    held.pop(tier, None)
                else:
                    held[tier] = caps.model_dump()
            now = self._clock()
            with self._database.transaction() as session:
                detail = {tier: held.get(tier) for tier in wanted}
                record(session, at=now, actor=actor, action="caps-set", subject="farm", **detail)
                self._write(held)

        await asyncio.to_thread(save)
        await self.renew()

    def view(self) -> dict[str, Any]:
        """Caps in force, and which of them were set at run time."""
        return {
            "caps": self.caps().model_dump(mode="json"),
            "set_at_run_time": sorted(self._set()),
            "foreign": list(self._foreign),
        }

    def _set(self) -> dict[str, Any]:
        try:
            held = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ConfigInvalid(
                f"{self._path}: {error}", hint="remove it, or restore it from the backup"
            ) from None
        return {tier: held[tier] for tier in TIERS if isinstance(held, dict) and tier in held}

    def _write(self, held: Mapping[str, Any]) -> None:
        temporary = self._path.with_name(f".{self._path.name}.new")
        with temporary.open("wb") as file:
            file.write(json.dumps(dict(held)).encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
