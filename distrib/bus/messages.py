"""What nodes, seeders and controller say to each other (docs/formats/messages.md).

Every message is a frozen pydantic model; ``distrib.bus.schema`` reads and writes them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from distrib.bus.schema import (
    Bytes,
    HostKeys,
    ImageId,
    Infohash,
    Message,
    Model,
    NodeName,
    Port,
    Text,
    Time,
    Token,
    VersionText,
)

REPORTED_HOLDERS = 256
"""Of all images of a node together: what a report of a thousand images has room for."""

HOLDER_MAX_CHARS = 128


class Transport(StrEnum):
    """How pieces may come."""

    SWARM = "swarm"
    TSUNAMI = "tsunami"
    AUTO = "auto"


class Traffic(StrEnum):
    """How a pull stands to the other traffic of its node: ``background`` makes way for it."""

    FOREGROUND = "foreground"
    BACKGROUND = "background"


class State(StrEnum):
    """The life of an image version on a node (docs/formats/state.md)."""

    ABSENT = "absent"
    RESERVED = "reserved"
    PULLING = "pulling"
    VERIFYING = "verifying"
    READY = "ready"
    LEASED = "leased"
    EVICTING = "evicting"
    FAILED = "failed"
    BLOCKED = "blocked"


class NodeReason(StrEnum):
    """Why an image is in the state that it is in, on a node (docs/formats/errors.md)."""

    WAITING_FOR_SITE_LIST = "waiting-for-site-list"
    NOT_ON_SITE_LIST = "not-on-site-list"
    WAITING_FOR_TORRENT = "waiting-for-torrent"
    TORRENT_MISMATCH = "torrent-mismatch"
    NO_SPACE = "no-space"
    TARGET_TOO_SMALL = "target-too-small"
    NO_PEERS = "no-peers"
    STALLED = "stalled"
    HASH_FAILED = "hash-failed"
    DIGEST_MISMATCH = "digest-mismatch"
    STORAGE_FAILED = "storage-failed"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    REVOKED = "revoked"
    SITE_LIST_STALE = "site-list-stale"
    RESUMED = "resumed"
    EVICTED = "evicted"
    INTERNAL = "internal"


class Peer(Model):
    """Where a node or seeder answers to BitTorrent, and to SSH where it may be asked so.
    ``host_keys``: of its sshd, as in known_hosts without the host ("ssh-ed25519 AAAA...")."""

    node: NodeName
    address: Annotated[str, Field(max_length=45)]
    port: Port
    ssh_port: Annotated[int, Field(ge=0, le=65535)] = 0
    host_keys: HostKeys = ()


Peers = Annotated[tuple[Peer, ...], Field(max_length=256)]


class Presence(Message):
    """Retained; the last will is the same with ``online`` false."""

    node: NodeName
    online: bool
    agent_version: Text = ""
    boot_id: Text = ""
    swarm_port: Annotated[int, Field(ge=0, le=65535)] = 0
    stripe_ports: Annotated[tuple[Port, ...], Field(max_length=2)] = ()
    ssh_port: Annotated[int, Field(ge=0, le=65535)] = 0
    cache_bytes: Bytes = 0
    cache_used_bytes: Bytes = 0
    sent_at: Time | None = None


class SeederPresence(Message):
    """Retained; the last will is the same with ``online`` false."""

    seeder: NodeName
    online: bool
    address: Annotated[str, Field(max_length=45)] = ""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    ssh_port: Annotated[int, Field(ge=0, le=65535)] = 0
    host_keys: HostKeys = ()
    web_seed: Annotated[str, Field(max_length=500)] = ""
    link_bps: Bytes = 0
    infohashes: Annotated[tuple[Infohash, ...], Field(max_length=10_000)] = ()
    sent_at: Time | None = None


Url = Annotated[str, Field(max_length=500, pattern=r"^https?://[!-~]+$")]


class Caps(Model):
    """Rate limits in bytes per second; 0 is no limit."""

    download_bps: Bytes = 0
    upload_bps: Bytes = 0


class DesiredImage(Model):
    """What the site wants of one image version on one node."""

    identifier: ImageId
    version: VersionText
    infohash: Infohash
    active: bool = True
    pinned: bool = False
    priority: Annotated[int, Field(ge=0, le=100)] = 50
    rollout: Token | None = None
    deadline: Time | None = None
    transport: Transport = Transport.SWARM
    traffic: Traffic = Traffic.FOREGROUND
    parents: Peers = ()
    fallbacks: Peers = ()
    neighbours: Peers = ()
    children: Peers = ()
    second_children: Peers = ()
    opens_after_ms: Annotated[int, Field(ge=0, le=10_000)] = 0
    stripes: Annotated[int, Field(ge=1, le=2)] = 1
    web_seeds: Annotated[tuple[Url, ...], Field(max_length=8)] = ()
    caps: Caps = Caps()


class Desired(Message):
    """Payload of a ``desired`` envelope: all that the site wants of a node."""

    node: NodeName
    issued_at: Time
    generation: Annotated[int, Field(ge=0, le=1 << 62)]
    report_interval_s: Annotated[float, Field(ge=0.1, le=3600)] = 2.0
    images: Annotated[tuple[DesiredImage, ...], Field(max_length=1000)] = ()


class Cancel(Model):
    """Stop a pull; what is on disk stays."""

    kind: Literal["cancel"] = "cancel"
    infohash: Infohash


class Reparent(Model):
    """Fetch from these peers from now on."""

    kind: Literal["reparent"] = "reparent"
    infohash: Infohash
    parents: Peers


class GrantTokens(Model):
    """Leave to fetch so many pieces over another transport."""

    kind: Literal["tokens"] = "tokens"
    infohash: Infohash
    transport: Transport
    pieces: Annotated[int, Field(ge=1, le=1_000_000)]
    sources: Peers = ()


class EndUses(Model):
    """End the guests and release the leases that use this image version."""

    kind: Literal["end-uses"] = "end-uses"
    infohash: Infohash
    text: Text = ""


Order = Annotated[Cancel | Reparent | GrantTokens | EndUses, Field(discriminator="kind")]


Network = Annotated[str, Field(max_length=49)]
"""An address, or a network with its prefix length ("192.0.2.0/28")."""


class Place(Model):
    """The nodes of one rack, by the networks that hold them and nobody else of the farm."""

    rack: Annotated[str, Field(max_length=63)] = ""
    room: Annotated[str, Field(max_length=63)] = ""
    networks: Annotated[tuple[Network, ...], Field(max_length=4096)]


class ClassCaps(Model):
    """Caps by how near a peer is: the sum of what a node exchanges with all peers of a class."""

    rack: Caps = Caps()
    room: Caps = Caps()
    elsewhere: Caps = Caps()


class FarmMap(Message):
    """Payload of the ``farm`` envelope: who belongs to the farm, and caps for everybody.
    ``foreign``: networks outside the farm that may fetch and be fetched from."""

    issued_at: Time
    generation: Annotated[int, Field(ge=0, le=1 << 62)]
    places: Annotated[tuple[Place, ...], Field(max_length=4096)] = ()
    foreign: Annotated[tuple[Network, ...], Field(max_length=256)] = ()
    caps: ClassCaps = ClassCaps()


class Orders(Message):
    """Payload of an ``orders`` envelope: what must not be replayed."""

    node: NodeName
    issued_at: Time
    expires_at: Time
    sequence: Annotated[int, Field(ge=0, le=1 << 62)]
    orders: Annotated[tuple[Order, ...], Field(min_length=1, max_length=1000)]


class BadPeer(Model):
    """A peer that sent blocks that failed their hash."""

    address: Annotated[str, Field(max_length=45)]
    node: NodeName | None = None
    hash_failures: Annotated[int, Field(ge=1)]


class Link(Model):
    """Traffic with one peer over one transport, bytes per second of payload, now."""

    node: NodeName | None = None
    address: Annotated[str, Field(max_length=45)]
    transport: Transport = Transport.SWARM
    download_bps: Bytes = 0
    upload_bps: Bytes = 0


class HolderKind(StrEnum):
    """With whom a lease dies."""

    PROCESS = "process"
    JOB = "job"
    TIME = "time"


class LeaseHolder(Model):
    """One lease and its holder: ``pid`` of a process, ``job`` as ``SCHEDULER:ID``, or ``until``."""

    lease: Token
    user: Annotated[str, Field(max_length=HOLDER_MAX_CHARS)]
    since: Time
    kind: HolderKind
    pid: Annotated[int, Field(gt=0, le=1 << 22)] | None = None
    job: Annotated[str, Field(max_length=HOLDER_MAX_CHARS)] = ""
    until: Time | None = None


class ImageReport(Model):
    """One image version on a node; of the ``leases`` not all may be among the ``holders``."""

    identifier: ImageId
    version: VersionText
    infohash: Infohash
    state: State
    active: bool = False
    bytes_done: Bytes = 0
    bytes_total: Bytes = 0
    rate_bps: Bytes = 0
    fetched_bytes: Bytes = 0
    wasted_bytes: Bytes = 0
    resumed_bytes: Bytes = 0
    copied_bytes: Bytes = 0
    peers: Annotated[int, Field(ge=0, le=100_000)] = 0
    leases: Annotated[int, Field(ge=0, le=100_000)] = 0
    holders: Annotated[tuple[LeaseHolder, ...], Field(max_length=REPORTED_HOLDERS)] = ()
    reason: NodeReason | None = None
    text: Text = ""
    since: Time
    bad_peers: Annotated[tuple[BadPeer, ...], Field(max_length=64)] = ()
    links: Annotated[tuple[Link, ...], Field(max_length=32)] = ()
    by_transport: Annotated[dict[Token, Bytes], Field(max_length=8)] = Field(default_factory=dict)


class Report(Message):
    """Retained: what a node holds and does. A claim, not a proof."""

    node: NodeName
    boot_id: Text
    sent_at: Time
    generation: Annotated[int, Field(ge=0)] = 0
    site_list_version: Text = ""
    refused: Annotated[dict[Token, int], Field(max_length=64)] = Field(default_factory=dict)
    capacity_bytes: Bytes = 0
    used_bytes: Bytes = 0
    images: Annotated[tuple[ImageReport, ...], Field(max_length=1000)] = ()


class ParentLost(Model):
    """The parent sends nothing any more; the node has gone to a fallback."""

    kind: Literal["parent-lost"] = "parent-lost"
    infohash: Infohash
    parent: NodeName
    now_from: NodeName | None = None
    reason: NodeReason | None = None


class TokensWanted(Model):
    """The swarm brings nothing: may I fetch otherwise?"""

    kind: Literal["tokens-wanted"] = "tokens-wanted"
    infohash: Infohash
    missing_pieces: Annotated[int, Field(ge=1)]
    reason: NodeReason


class ImageWanted(Model):
    """A job of ``user`` names an image that is not here."""

    kind: Literal["image-wanted"] = "image-wanted"
    image: Annotated[str, Field(max_length=200)]
    job: Text = ""
    user: Annotated[str, Field(max_length=HOLDER_MAX_CHARS)] = ""


RequestBody = Annotated[ParentLost | TokensWanted | ImageWanted, Field(discriminator="kind")]


class Request(Message):
    """A node asks the controller for something. QoS 1, not retained."""

    node: NodeName
    sent_at: Time
    request: RequestBody


class EventKind(StrEnum):
    """What the audit keeps of a node."""

    READY = "ready"
    LEASED = "leased"
    RELEASED = "released"
    LAUNCHED = "launched"
    ENDED = "ended"
    EVICTED = "evicted"
    DAMAGED = "damaged"
    OVERRUN = "overrun"
    FAILED = "failed"
    FILLING = "filling"
    BLOCKED = "blocked"
    BAD_PEER = "bad-peer"
    REFUSED = "refused"


class Event(Message):
    """Something happened on a node. QoS 1, not retained; ``id`` makes a repeat harmless."""

    node: NodeName
    id: Token
    at: Time
    kind: EventKind
    identifier: ImageId | None = None
    version: VersionText | None = None
    reason: NodeReason | None = None
    lease: Token | None = None
    user: Text = ""
    job: Text = ""
    beneficiary: Text = ""
    text: Text = ""
