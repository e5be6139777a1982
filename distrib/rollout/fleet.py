"""What is known of the nodes and seeders: the inventory, and what they say of themselves.

Everything that nodes say is a claim: it is parsed, bounded, compared with the topic that it came
on (which the broker's access rules tie to the certificate), and counted when it is refused.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import structlog

from distrib.bus.messages import Event, ImageReport, Presence, Report, Request, SeederPresence
from distrib.bus.schema import decode
from distrib.bus.topics import Topics, is_node_name
from distrib.errors import MessageInvalid
from distrib.rollout.machine import Claim, ImageKey
from distrib.rollout.movement import Movement
from distrib.rollout.plan import InventoryNode
from distrib.swarm import IMAGE_FILE
from distrib.swarm.relay_peers import Member

log = structlog.get_logger(__name__)

WEB_SEEDS_MAX = 8

_HELD = frozenset({"ready", "leased"})


class WrongNode(MessageInvalid):
    """A message speaks for another node than its topic's."""

    code = "wrong-node"


@dataclass(frozen=True)
class Cleared:
    """A retained topic was deleted."""

    node: str
    leaf: str


_MODELS: dict[str, type[Presence | Report | Request | Event]] = {
    "presence": Presence,
    "report": Report,
    "request": Request,
    "event": Event,
}
Message = Presence | Report | Request | Event | SeederPresence | Cleared


@dataclass(frozen=True)
class Heard:
    """A message that was taken in, and what the same sender had said before."""

    message: Message
    before: Presence | Report | SeederPresence | None = None


class Fleet:
    """Inventory, presences, newest reports, seeders; only the rollout service's loop changes it."""

    def __init__(self, topics: Topics, movement: Movement | None = None) -> None:
        self.movement = movement or Movement()
        self.inventory: dict[str, InventoryNode] = {}
        self.presences: dict[str, Presence] = {}
        self.reports: dict[str, Report] = {}
        self.seeders: dict[str, SeederPresence] = {}
        self.refused: Counter[str] = Counter()
        self._topics = topics
        self._held: dict[str, dict[str, ImageReport]] = {}

    def hear(self, topic: str, payload: bytes) -> Heard | None:
        """Take a message in; None (and a count by code) for one that is refused."""
        try:
            message = self._parse(topic, payload)
        except MessageInvalid as error:
            self.refused[error.code] += 1
            log.warning("refused", topic=topic[:200], code=error.code, why=error.message)
            return None
        before: Presence | Report | SeederPresence | None = None
        match message:
            case Presence():
                before = self.presences.get(message.node)
                self.presences[message.node] = message
            case Report():
                before = self.reports.get(message.node)
                self.reports[message.node] = message
                self.movement.heard(message)
                self._held[message.node] = {image.infohash: image for image in message.images}
            case SeederPresence():
                before = self.seeders.get(message.seeder)
                self.seeders[message.seeder] = message
            case Cleared(node, "presence"):
                before = self.presences.pop(node, None)
            case Cleared(node, "report"):
                before = self._drop_report(node)
            case _:
                pass
        return Heard(message, before)

    def forget(self, node: str) -> None:
        """Off the inventory; of one that is connected we keep what it says: it may come back."""
        connected = self.is_online(node)
        self.inventory.pop(node, None)
        if not connected:
            self.presences.pop(node, None)
            self._drop_report(node)

    def is_online(self, node: str) -> bool:
        """Whether a node of the inventory is connected."""
        presence = self.presences.get(node)
        return node in self.inventory and presence is not None and presence.online

    def online(self) -> set[str]:
        """The nodes of the inventory that are connected."""
        return {node for node in self.inventory if self.is_online(node)}

    def held(self, node: str, infohash: str) -> ImageReport | None:
        """What the node's newest report says of the torrent."""
        return self._held.get(node, {}).get(infohash)

    def claim(self, node: str, image: ImageKey) -> Claim | None:
        """What the node's newest report says of an image version; None: nothing."""
        held = self.held(node, image.infohash)
        if held is None or (held.identifier, held.version) != (image.identifier, image.version):
            return None
        return Claim(
            state=str(held.state),
            since=held.since,
            bytes_done=held.bytes_done,
            bytes_total=held.bytes_total,
            rate_bps=held.rate_bps,
            reason=None if held.reason is None else str(held.reason),
            text=held.text,
            fetched_bytes=held.fetched_bytes,
            wasted_bytes=held.wasted_bytes,
            copied_bytes=held.copied_bytes,
        )

    def member(self, node: str, infohash: str) -> Member:
        """The node as the relay plan sees it. It must be in the inventory."""
        entry, presence = self.inventory[node], self.presences.get(node)
        held = self.held(node, infohash)
        has_all = held is not None and held.state in _HELD
        return Member(
            node=node,
            address=entry.address,
            port=0 if presence is None else presence.swarm_port,
            rack=entry.rack,
            has_all=has_all,
            progress=1.0 if has_all else _progress(held),
            link_bps=entry.link_bps,
            stripe_ports=() if presence is None else presence.stripe_ports,
            ssh_port=0 if presence is None else presence.ssh_port,
            host_keys=entry.host_keys,
        )

    def seeders_of(self, infohash: str) -> list[Member]:
        """The seeders that are connected and have the torrent."""
        return [
            Member(
                seeder.seeder,
                seeder.address,
                seeder.port,
                has_all=True,
                progress=1.0,
                link_bps=seeder.link_bps,
                ssh_port=seeder.ssh_port,
                host_keys=seeder.host_keys,
            )
            for seeder in self.seeders.values()
            if seeder.online and infohash in seeder.infohashes
        ]

    def web_seeds_of(self, infohash: str) -> tuple[str, ...]:
        """Where the seeders serve the image over HTTPS."""
        return tuple(
            sorted(
                f"{seeder.web_seed.rstrip('/')}/{infohash}/{IMAGE_FILE}"
                for seeder in self.seeders.values()
                if seeder.online and seeder.web_seed and infohash in seeder.infohashes
            )
        )[:WEB_SEEDS_MAX]

    def _drop_report(self, node: str) -> Report | None:
        self._held.pop(node, None)
        self.movement.forget(node)
        return self.reports.pop(node, None)

    def _parse(self, topic: str, payload: bytes) -> Message:
        name = self._topics.parse_seeder(topic)
        if name is not None:
            if not payload:
                return SeederPresence(seeder=name, online=False)
            seeder = decode(SeederPresence, payload, what=topic)
            _check_name(name, seeder.seeder)
            return seeder
        parsed = self._topics.parse_node(topic)
        if parsed is None or parsed[1] not in _MODELS or not is_node_name(parsed[0]):
            raise MessageInvalid(f"no topic of a node: {topic[:200]!r}", hint="ignored")
        node, leaf = parsed
        if not payload:
            return Cleared(node, leaf)
        message = decode(_MODELS[leaf], payload, what=topic)
        _check_name(node, message.node)
        return message


def reach_of(presence: Presence | None) -> tuple[object, ...]:
    """What of a presence the relay plan depends on."""
    if presence is None:
        return (False, 0, (), 0)
    return (presence.online, presence.swarm_port, presence.stripe_ports, presence.ssh_port)


def place_of(node: InventoryNode) -> tuple[object, ...]:
    """What of the inventory the relay plan depends on."""
    return (node.address, node.rack, node.link_bps, node.host_keys)


def source_of(seeder: SeederPresence) -> tuple[object, ...]:
    """What of a seeder's presence the relay plan depends on."""
    swarm = (seeder.online, seeder.address, seeder.port, seeder.link_bps)
    further = (seeder.ssh_port, seeder.host_keys, seeder.web_seed)
    return (*swarm, *further, frozenset(seeder.infohashes))


def complete_in(report: Report | None) -> set[str]:
    """The torrents that a report says are whole."""
    images = () if report is None else report.images
    return {image.infohash for image in images if image.state in _HELD}


def _check_name(topic_name: str, stated_name: str) -> None:
    if topic_name != stated_name:
        raise WrongNode(
            f"a message of {topic_name} speaks for {stated_name}", hint="ignored", node=topic_name
        )


def _progress(held: ImageReport | None) -> float:
    if held is None or held.bytes_total <= 0:
        return 0.0
    return min(held.bytes_done / held.bytes_total, 1.0)
