"""The tables of what comes from outside: subscriptions, checks of images, events for handlers.

They follow the rules of ``distrib.db.models``.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from distrib.db.models import Base


class Take(StrEnum):
    """Which images of a subscription are taken in without being asked for."""

    NONE = "none"
    KNOWN = "known"
    ALL = "all"


class Outcome(StrEnum):
    """What a policy check says of an image; ``not-inspected`` is never a pass."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    NOT_INSPECTED = "not-inspected"


class DeliveryState(StrEnum):
    """The life of one event for one handler."""

    QUEUED = "queued"
    DONE = "done"
    GIVEN_UP = "given-up"


class Subscription(Base):
    """An image list that is polled.

    ``identifier`` is the list's UUID, None until the first list was accepted. ``dn`` and ``ca``
    may sign it, beside those that table ``endorsers`` names for it. ``etag`` and ``message_sha512``
    are those of the newest message that was accepted, ``ok_at`` is when the list was last known to
    be the newest, ``code`` and ``text`` say how the last poll ended, ``reasons`` why:
    ``{"exit", "hint", "reasons": [...], "remarks": [...]}``. The password of ``username`` is a file
    of the state directory.
    """

    __tablename__ = "subscriptions"

    id: Mapped[int] = mapped_column(primary_key=True)
    url: Mapped[str] = mapped_column(Text, unique=True)
    identifier: Mapped[str | None] = mapped_column(String(36), unique=True)
    dn: Mapped[str] = mapped_column(Text)
    ca: Mapped[str] = mapped_column(Text)
    take: Mapped[str] = mapped_column(String(16), default=Take.KNOWN)
    username: Mapped[str | None] = mapped_column(String(255))
    ca_file: Mapped[str | None] = mapped_column(Text)
    interval_s: Mapped[int] = mapped_column(default=3600)
    alarm_age_s: Mapped[int] = mapped_column(default=86400)
    etag: Mapped[str | None] = mapped_column(Text)
    message_sha512: Mapped[str | None] = mapped_column(String(128))
    polled_at: Mapped[datetime | None]
    ok_at: Mapped[datetime | None]
    next_at: Mapped[datetime | None]
    failures: Mapped[int] = mapped_column(default=0)
    code: Mapped[str | None] = mapped_column(String(64))
    text: Mapped[str] = mapped_column(Text, default="")
    reasons: Mapped[dict[str, Any]] = mapped_column(default=dict)
    added_at: Mapped[datetime]
    added_by: Mapped[str] = mapped_column(String(128))


class ImageCheck(Base):
    """What one policy check said of an image version in quarantine."""

    __tablename__ = "image_checks"
    __table_args__ = (
        ForeignKeyConstraint(
            ["identifier", "version"],
            ["images.identifier", "images.version"],
            ondelete="CASCADE",
        ),
    )

    identifier: Mapped[str] = mapped_column(String(36), primary_key=True)
    version: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    outcome: Mapped[str] = mapped_column(String(16))
    text: Mapped[str] = mapped_column(Text, default="")
    at: Mapped[datetime]


class Event(Base):
    """Something that handlers are told of, in the order of ``id`` (docs/formats/events.md).

    ``environment`` holds the variables that a handler gets, without those of the site.
    """

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    type: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(Text, default="", index=True)
    environment: Mapped[dict[str, Any]] = mapped_column(default=dict)


class EventDelivery(Base):
    """One event for one handler, and how that went."""

    __tablename__ = "event_deliveries"
    __table_args__ = (Index("ix_event_deliveries_state", "state"),)

    event: Mapped[int] = mapped_column(
        ForeignKey("events.id", ondelete="CASCADE"), primary_key=True
    )
    handler: Mapped[str] = mapped_column(String(64), primary_key=True)
    state: Mapped[str] = mapped_column(String(16), default=DeliveryState.QUEUED)
    attempts: Mapped[int] = mapped_column(default=0)
    next_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    exit_status: Mapped[int | None]
    output: Mapped[str] = mapped_column(Text, default="")
