"""What each node is told: its ``desired`` state, built from assignments and relay plan, and signed.

A node is told anew only when what it is told has changed. The generation is
``max(stored + 1, unix time)``, and is on disk before the message leaves (docs/formats/messages.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from distrib.bus.messages import Caps, Desired, DesiredImage, Peer, Traffic, Transport
from distrib.bus.schema import decode, encode
from distrib.errors import DistribError
from distrib.swarm.relay_peers import Links, RelayPeer
from distrib.trust.envelope import key_id, open_envelope, seal

MIN_REPORT_INTERVAL_S = 0.5
REPORTS_PER_SECOND = 500


@dataclass(frozen=True)
class Assigned:
    """One image version that the site wants on a node (a row of ``assignments``)."""

    node: str
    identifier: str
    version: str
    infohash: str
    active: bool = True
    pinned: bool = False
    priority: int = 50
    transport: str = "swarm"
    rollout: str | None = None
    download_bps: int = 0
    upload_bps: int = 0
    traffic: str = "foreground"
    deadline: datetime | None = None
    size_bytes: int = 0


@dataclass(frozen=True)
class Wanted:
    """The content of a ``desired``, without what changes each time that it is sent."""

    report_interval_s: float
    images: tuple[DesiredImage, ...]

    @classmethod
    def of(cls, desired: Desired) -> Wanted:
        """What a message that was sent says."""
        return cls(desired.report_interval_s, desired.images)

    def names(self, infohash: str) -> bool:
        """Whether the node is to have the torrent."""
        return any(image.infohash == infohash for image in self.images)

    def is_news_after(self, before: Wanted) -> bool:
        """Whether who was told ``before`` is to be told this. When to open an image is no news."""
        return self != before and self._without_openings() != before._without_openings()

    def _without_openings(self) -> Wanted:
        whenever = {"opens_after_ms": 0}
        return replace(self, images=tuple(one.model_copy(update=whenever) for one in self.images))


def with_assigned(held: Sequence[Assigned], new: Assigned) -> tuple[Assigned, ...]:
    """What is wanted on a node when ``new`` becomes the active version of its image.

    The version that was active before stays wanted, to go back to; older ones do not. Where ``new``
    is active already, what there was to go back to stays.
    """
    kept = [one for one in held if one.identifier != new.identifier]
    others = [
        one for one in held if one.identifier == new.identifier and one.version != new.version
    ]
    before = [one for one in others if one.active] or others
    return (*kept, *(replace(one, active=False) for one in before[:1]), new)


def without_rollout(held: Sequence[Assigned], rollout: str) -> tuple[Assigned, ...]:
    """What is wanted on a node when a rollout is taken back; the version before is active again."""
    dropped = {one.identifier for one in held if one.rollout == rollout and one.active}
    return tuple(
        replace(one, active=True) if one.identifier in dropped else one
        for one in held
        if one.rollout != rollout
    )


def report_interval_s(nodes: int) -> float:
    """How often a node reports while it pulls, so that all together stay bearable.

    In powers of two: one node more must not be a message to every other.
    """
    counted = 1 << max(nodes - 1, 0).bit_length()
    return max(MIN_REPORT_INTERVAL_S, counted / REPORTS_PER_SECOND)


def wanted_of(
    assigned: Iterable[Assigned],
    links: Mapping[str, Links],
    *,
    interval_s: float,
    transport: str = "",
    web_seeds: Callable[[str], tuple[str, ...]] = lambda _: (),
) -> Wanted:
    """What one node is told; ``links`` are its own, by info-hash; ``transport`` is what its label
    says, which goes before the rollout's."""
    ordered = sorted(assigned, key=lambda one: (one.identifier, one.version))
    images = tuple(
        _image(
            replace(one, transport=transport or one.transport),
            links.get(one.infohash, Links()),
            web_seeds(one.infohash),
        )
        for one in ordered
    )
    return Wanted(interval_s, images)


def seal_desired(
    node: str, wanted: Wanted, *, generation: int, now: datetime, key: Ed25519PrivateKey
) -> bytes:
    """The signed message."""
    desired = Desired(
        node=node,
        issued_at=now,
        generation=generation,
        report_interval_s=wanted.report_interval_s,
        images=wanted.images,
    )
    return seal("desired", encode(desired).decode(), key)


def open_own(node: str, envelope: bytes, key: Ed25519PrivateKey) -> Desired | None:
    """A retained message of ours, read back; None for anything else that lies on the topic."""
    public = key.public_key()
    try:
        payload = open_envelope(envelope, kind="desired", keys={key_id(public): public})
        desired = decode(Desired, payload.encode(), what="own desired")
    except DistribError:
        return None
    return desired if desired.node == node else None


def _image(one: Assigned, links: Links, web_seeds: tuple[str, ...]) -> DesiredImage:
    further = one.transport != Transport.SWARM
    return DesiredImage(
        identifier=one.identifier,
        version=one.version,
        infohash=one.infohash,
        active=one.active,
        pinned=one.pinned,
        priority=one.priority,
        rollout=one.rollout,
        deadline=one.deadline,
        transport=Transport(one.transport),
        traffic=Traffic(one.traffic),
        parents=peers_of(links.parents, ssh=further),
        fallbacks=peers_of(links.fallbacks, ssh=further),
        neighbours=peers_of(links.neighbours, ssh=further),
        children=peers_of(links.children),
        second_children=peers_of(links.second_children),
        opens_after_ms=links.opens_after_ms,
        stripes=links.stripes,
        web_seeds=web_seeds if further else (),
        caps=Caps(download_bps=one.download_bps, upload_bps=one.upload_bps),
    )


def peers_of(peers: Iterable[RelayPeer], *, ssh: bool = False) -> tuple[Peer, ...]:
    """As a message has them; with ``ssh`` also where and by which keys they answer to SSH."""
    return tuple(
        Peer(
            node=peer.node,
            address=peer.address,
            port=peer.port,
            ssh_port=peer.ssh_port if ssh and peer.host_keys else 0,
            host_keys=peer.host_keys if ssh else (),
        )
        for peer in peers
    )
