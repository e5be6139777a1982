"""The one message schema (docs/formats/messages.md): what nodes, seeders and controller say.

Every message is a frozen pydantic model. ``decode`` turns bytes into a model or raises
``MessageInvalid`` with one line; ``encode`` is its inverse. Unknown keys are ignored, so that a
newer peer may say more; everything known is bounded.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
)

from distrib.errors import MessageInvalid

REPORTED_HOLDERS = 256
"""Of all images of a node together: what a report of a thousand images has room for."""

HOLDER_MAX_CHARS = 128

MESSAGE_MAX_BYTES = 1 << 20
"""Larger messages are refused unread (a desired state of 200 images is about 200 KiB)."""


def _utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("time without a zone: end it with Z")
    return value.astimezone(UTC)


def _rfc3339(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Time = Annotated[datetime, AfterValidator(_utc), PlainSerializer(_rfc3339, return_type=str)]
NodeName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$")]
Infohash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ImageId = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
VersionText = Annotated[
    str, Field(min_length=1, max_length=64, pattern=r"^[0-9A-Za-z][\w.,/+~-]*$")
]
Bytes = Annotated[int, Field(ge=0, le=1 << 60)]
Port = Annotated[int, Field(ge=1, le=65535)]
Text = Annotated[str, Field(max_length=1000)]
Token = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[\w.:@+-]+$")]


class Model(BaseModel):
    """Base of all messages."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Message(Model):
    """A message of its own on a topic."""

    v: Literal[1] = 1


class Transport(StrEnum):
    """How pieces may come."""

    SWARM = "swarm"
    TSUNAMI = "tsunami"
    AUTO = "auto"


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
    """Where a node or seeder answers to BitTorrent."""

    node: NodeName
    address: Annotated[str, Field(max_length=45)]
    port: Port


Peers = Annotated[tuple[Peer, ...], Field(max_length=256)]


class Presence(Message):
    """Retained; the last will is the same with ``online`` false."""

    node: NodeName
    online: bool
    agent_version: Text = ""
    boot_id: Text = ""
    swarm_port: Annotated[int, Field(ge=0, le=65535)] = 0
    stripe_ports: Annotated[tuple[Port, ...], Field(max_length=2)] = ()
    cache_bytes: Bytes = 0
    cache_used_bytes: Bytes = 0
    sent_at: Time | None = None


class SeederPresence(Message):
    """Retained; the last will is the same with ``online`` false."""

    seeder: NodeName
    online: bool
    address: Annotated[str, Field(max_length=45)] = ""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    link_bps: Bytes = 0
    infohashes: Annotated[tuple[Infohash, ...], Field(max_length=10_000)] = ()
    sent_at: Time | None = None


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
    parents: Peers = ()
    fallbacks: Peers = ()
    neighbours: Peers = ()
    stripes: Annotated[int, Field(ge=1, le=2)] = 1
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


Order = Annotated[Cancel | Reparent | GrantTokens, Field(discriminator="kind")]


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
    """One image version on a node. ``bytes_done`` counts verified bytes only; ``holders`` may name
    fewer than the ``leases`` that there are."""

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


class Report(Message):
    """Retained: what a node holds and does. A claim, not a proof."""

    node: NodeName
    boot_id: Text
    sent_at: Time
    generation: Annotated[int, Field(ge=0)] = 0
    site_list_version: Text = ""
    refused: Annotated[dict[Token, int], Field(max_length=64)] = {}
    capacity_bytes: Bytes = 0
    used_bytes: Bytes = 0
    images: Annotated[tuple[ImageReport, ...], Field(max_length=1000)] = ()


class ParentLost(Model):
    """The parent sends nothing any more; the node has gone to a fallback."""

    kind: Literal["parent-lost"] = "parent-lost"
    infohash: Infohash
    parent: NodeName
    now_from: NodeName | None = None


class TokensWanted(Model):
    """The swarm brings nothing: may I fetch otherwise?"""

    kind: Literal["tokens-wanted"] = "tokens-wanted"
    infohash: Infohash
    missing_pieces: Annotated[int, Field(ge=1)]
    reason: NodeReason


class ImageWanted(Model):
    """A queued job names an image that is not here."""

    kind: Literal["image-wanted"] = "image-wanted"
    image: Annotated[str, Field(max_length=200)]
    job: Text = ""


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


M = TypeVar("M", bound=BaseModel)


def encode(message: BaseModel) -> bytes:
    """JSON, compact, UTF-8."""
    return message.model_dump_json(exclude_none=True).encode()


def describe(error: ValidationError) -> str:
    """The first fault of a validation in one line: where and what."""
    first: Any = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "document"
    return f"{where}: {first['msg']}"


def decode(model: type[M], data: bytes, *, what: str) -> M:
    """Parse ``data`` as ``model``.

    Raises MessageInvalid (``what`` names the topic or file) for anything but a well-formed
    message of major version 1 within the bounds.
    """
    if len(data) > MESSAGE_MAX_BYTES:
        raise MessageInvalid(
            f"{what}: {len(data)} bytes, more than {MESSAGE_MAX_BYTES}", hint="ignored unread"
        )
    try:
        return TypeAdapter(model).validate_json(data)
    except ValidationError as error:
        raise MessageInvalid(
            f"{what}: {describe(error)}", hint="the sender and this side differ in version, or lie"
        ) from None
    except RecursionError:
        raise MessageInvalid(f"{what}: nested too deep", hint="ignored") from None
