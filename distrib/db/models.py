"""The tables of the head node (docs/formats/head-state.md), for SQLite and PostgreSQL alike.

Times are aware and in UTC. Sizes are bytes, rates bytes per second. Rows hold facts that were
decided or reported; what follows from them (percentages, whether a node is late) is never stored.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class UtcTime(TypeDecorator[datetime]):
    """An aware time. SQLite has no zones: what went in was UTC, so that is what comes back."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a naive time: it would be another moment on another machine."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time without a zone: {value.isoformat()}")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Put the zone back."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Base of all tables; constraints have names, so that migrations can speak of them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcTime(),
        dict[str, Any]: JSON(),
        list[str]: JSON(),
    }


class ImageState(StrEnum):
    """The life of an image version at the site.

    ``announced -> expected -> quarantined -> approved -> superseded``; from any of them ``denied``
    by the site, or ``revoked`` by the endorser: its UUID is no longer on the newest list.
    ``announced``: on an accepted list, and nobody has asked for it; ``expected``: to be taken in.
    """

    ANNOUNCED = "announced"
    EXPECTED = "expected"
    QUARANTINED = "quarantined"
    APPROVED = "approved"
    SUPERSEDED = "superseded"
    DENIED = "denied"
    REVOKED = "revoked"


class RolloutState(StrEnum):
    """The life of a rollout (docs/formats/api.md)."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    ABORTED = "aborted"


class Role(StrEnum):
    """What a token may do (``distrib.api.bearer`` has which role may what another may).

    ``user``: a user of the site, whose images they propose; ``batch``: a batch system.
    """

    VIEWER = "viewer"
    USER = "user"
    BATCH = "batch"
    OPERATOR = "operator"
    ADMIN = "admin"


class Endorser(Base):
    """Who may sign which image list; ``list_identifier`` None: any list."""

    __tablename__ = "endorsers"
    __table_args__ = (UniqueConstraint("dn", "ca", "list_identifier"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    dn: Mapped[str] = mapped_column(Text)
    ca: Mapped[str] = mapped_column(Text)
    list_identifier: Mapped[str | None] = mapped_column(String(36))
    added_at: Mapped[datetime]
    added_by: Mapped[str] = mapped_column(String(128))


class AcceptedList(Base):
    """A signed image list that was accepted; its bytes are ``lists/<sha512>.smime``.

    Or what a user says of an image that they propose, signed by nobody: ``lists/<sha512>.json``.
    """

    __tablename__ = "image_lists"

    sha512: Mapped[str] = mapped_column(String(128), primary_key=True)
    identifier: Mapped[str] = mapped_column(String(36), index=True)
    version: Mapped[str] = mapped_column(String(255))
    endorser_dn: Mapped[str] = mapped_column(Text)
    endorser_ca: Mapped[str] = mapped_column(Text)
    created: Mapped[datetime]
    expires: Mapped[datetime]
    accepted_at: Mapped[datetime]
    accepted_by: Mapped[str] = mapped_column(String(128))


class Image(Base):
    """An image version. ``endorsed_*`` speak of the file as downloaded, the rest of the raw bytes.

    ``entry`` is the endorsed entry, what is under ``hv:image``; ``audience`` is ``{"all": true}``
    or ``{"users": [...]}``; ``until`` ends the grace of a superseded version. ``source`` is where
    the file is fetched from, empty where somebody uploads it; ``fetched_bytes`` is how much of it
    has come; ``fault`` is ``{"code", "message", "hint", "exit", "at",
    "attempts", "again_at"?}`` of the last try to take it in (no ``again_at``: for good), empty when
    that went well; ``before_denial`` is the state that an undeny goes back to. ``endorsed_until``
    is when the newest list that names the UUID, or the entry, expires; ``lapsed_at`` is when that
    was noticed, None while the endorsement is in force. ``proposed_by`` is the user of the site who
    brought it; then no endorser stands for it, and its row of ``image_lists`` is that user's word.
    """

    __tablename__ = "images"
    __table_args__ = (Index("ix_images_state", "state"), Index("ix_images_infohash", "infohash"))

    identifier: Mapped[str] = mapped_column(String(36), primary_key=True)
    version: Mapped[str] = mapped_column(String(64), primary_key=True)
    title: Mapped[str] = mapped_column(Text, default="")
    list_sha512: Mapped[str] = mapped_column(ForeignKey("image_lists.sha512"))
    list_identifier: Mapped[str] = mapped_column(String(36))
    list_version: Mapped[str] = mapped_column(String(255))
    endorser_dn: Mapped[str] = mapped_column(Text)
    endorser_ca: Mapped[str] = mapped_column(Text)
    entry: Mapped[dict[str, Any]]
    endorsed_sha512: Mapped[str] = mapped_column(String(128))
    endorsed_size_bytes: Mapped[int] = mapped_column(BigInteger)
    expires: Mapped[datetime | None]
    state: Mapped[str] = mapped_column(String(16))
    since: Mapped[datetime]
    reason: Mapped[str] = mapped_column(Text, default="")
    until: Mapped[datetime | None]
    approved_at: Mapped[datetime | None]
    audience: Mapped[dict[str, Any]] = mapped_column(default=lambda: {"all": True})
    infohash: Mapped[str | None] = mapped_column(String(64))
    sha512: Mapped[str | None] = mapped_column(String(128))
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    piece_bytes: Mapped[int | None]
    source: Mapped[str] = mapped_column(Text, default="", server_default="")
    fetched_bytes: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    fault: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default="{}")
    before_denial: Mapped[str | None] = mapped_column(String(16))
    endorsed_until: Mapped[datetime | None]
    lapsed_at: Mapped[datetime | None]
    proposed_by: Mapped[str | None] = mapped_column(String(64))


class Alias(Base):
    """The site's own name of an image UUID."""

    __tablename__ = "aliases"

    alias: Mapped[str] = mapped_column(String(64), primary_key=True)
    identifier: Mapped[str] = mapped_column(String(36), index=True)


class Node(Base):
    """The inventory: where a node is and what it is called by selectors."""

    __tablename__ = "nodes"

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    address: Mapped[str] = mapped_column(String(45))
    rack: Mapped[str] = mapped_column(String(64), default="")
    labels: Mapped[dict[str, Any]] = mapped_column(default=dict)
    host_keys: Mapped[list[str]] = mapped_column(default=list, server_default="[]")
    added_at: Mapped[datetime]
    added_by: Mapped[str] = mapped_column(String(128))


class Assignment(Base):
    """What the site wants of an image version on a node: one entry of the node's ``desired``."""

    __tablename__ = "assignments"
    __table_args__ = (
        ForeignKeyConstraint(["identifier", "version"], ["images.identifier", "images.version"]),
    )

    node: Mapped[str] = mapped_column(
        ForeignKey("nodes.name", ondelete="CASCADE"), primary_key=True
    )
    identifier: Mapped[str] = mapped_column(String(36), primary_key=True)
    version: Mapped[str] = mapped_column(String(64), primary_key=True)
    active: Mapped[bool] = mapped_column(default=True)
    pinned: Mapped[bool] = mapped_column(default=False)
    priority: Mapped[int] = mapped_column(default=50)
    transport: Mapped[str] = mapped_column(String(16), default="swarm")
    rollout: Mapped[str | None] = mapped_column(ForeignKey("rollouts.id"))
    download_bps: Mapped[int] = mapped_column(BigInteger, default=0)
    upload_bps: Mapped[int] = mapped_column(BigInteger, default=0)
    deadline: Mapped[datetime | None]
    since: Mapped[datetime]


class Generation(Base):
    """The last generation of ``desired`` (or sequence of ``orders``) that a node was sent.

    It outlives the node's row: a node that is forgotten and added again must not see it fall."""

    __tablename__ = "generations"

    node: Mapped[str] = mapped_column(String(63), primary_key=True)
    generation: Mapped[int] = mapped_column(BigInteger, default=0)
    orders_sequence: Mapped[int] = mapped_column(BigInteger, default=0)


class Rollout(Base):
    """An image version on its way to the nodes that a selector names."""

    __tablename__ = "rollouts"
    __table_args__ = (
        ForeignKeyConstraint(["identifier", "version"], ["images.identifier", "images.version"]),
        Index("ix_rollouts_state", "state"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    identifier: Mapped[str] = mapped_column(String(36))
    version: Mapped[str] = mapped_column(String(64))
    infohash: Mapped[str] = mapped_column(String(64))
    alias: Mapped[str | None] = mapped_column(String(64))
    selector: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16))
    accepted_at: Mapped[datetime]
    accepted_by: Mapped[str] = mapped_column(String(128))
    deadline: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    ended_by: Mapped[str | None] = mapped_column(String(128))
    options: Mapped[dict[str, Any]] = mapped_column(default=dict)


class RolloutTarget(Base):
    """The newest that is known of one node in one rollout."""

    __tablename__ = "rollout_targets"

    rollout: Mapped[str] = mapped_column(
        ForeignKey("rollouts.id", ondelete="CASCADE"), primary_key=True
    )
    node: Mapped[str] = mapped_column(String(63), primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    online: Mapped[bool] = mapped_column(default=False)
    bytes_done: Mapped[int] = mapped_column(BigInteger, default=0)
    bytes_total: Mapped[int] = mapped_column(BigInteger, default=0)
    rate_bps: Mapped[int] = mapped_column(BigInteger, default=0)
    reason: Mapped[str | None] = mapped_column(String(64))
    text: Mapped[str] = mapped_column(Text, default="")
    since: Mapped[datetime]
    ready_at: Mapped[datetime | None]
    detail: Mapped[dict[str, Any]] = mapped_column(default=dict)


class Token(Base):
    """A bearer token; the token itself is never stored."""

    __tablename__ = "tokens"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(16))
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(String(128))
    expires_at: Mapped[datetime | None]


class Audit(Base):
    """Who did what and when. Rows are only ever added."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    actor: Mapped[str] = mapped_column(String(128))
    action: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(Text)
    detail: Mapped[dict[str, Any]] = mapped_column(default=dict)


class NodeEvent(Base):
    """What a node reported for the audit; the key makes a repeat harmless."""

    __tablename__ = "node_events"

    node: Mapped[str] = mapped_column(String(63), primary_key=True)
    event_id: Mapped[str] = mapped_column(String(128), primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    received_at: Mapped[datetime]
    kind: Mapped[str] = mapped_column(String(32))
    detail: Mapped[dict[str, Any]] = mapped_column(default=dict)


class Counter(Base):
    """A number that only rises."""

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[int] = mapped_column(BigInteger)
