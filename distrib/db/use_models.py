"""The tables of what is done with images on the nodes: what jobs wait for, what is to be ended.

They follow the rules of ``distrib.db.models``.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, ForeignKeyConstraint, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from distrib.db.models import Base


class Want(Base):
    """A queued job waits for an image version on some node that ``selector`` names.

    ``user``: whose job it is, empty where nobody said; ``until``: when the want lapses unless it is
    repeated; ``rollout``: the pre-staging that it began or joined, None where none was needed.
    """

    __tablename__ = "wants"
    __table_args__ = (
        ForeignKeyConstraint(
            ["identifier", "version"],
            ["images.identifier", "images.version"],
            ondelete="CASCADE",
        ),
    )

    identifier: Mapped[str] = mapped_column(String(36), primary_key=True)
    version: Mapped[str] = mapped_column(String(64), primary_key=True)
    job: Mapped[str] = mapped_column(String(128), primary_key=True)
    user: Mapped[str] = mapped_column(String(128), default="")
    selector: Mapped[str] = mapped_column(Text)
    asked_by: Mapped[str] = mapped_column(String(128))
    first_at: Mapped[datetime]
    last_at: Mapped[datetime]
    until: Mapped[datetime] = mapped_column(index=True)
    rollout: Mapped[str | None] = mapped_column(ForeignKey("rollouts.id"))


class Ending(Base):
    """What runs from an image version is to be ended, wherever it is found, until ``until``."""

    __tablename__ = "endings"
    __table_args__ = (
        ForeignKeyConstraint(
            ["identifier", "version"],
            ["images.identifier", "images.version"],
            ondelete="CASCADE",
        ),
    )

    identifier: Mapped[str] = mapped_column(String(36), primary_key=True)
    version: Mapped[str] = mapped_column(String(64), primary_key=True)
    infohash: Mapped[str] = mapped_column(String(64))
    text: Mapped[str] = mapped_column(Text, default="")
    asked_by: Mapped[str] = mapped_column(String(128))
    asked_at: Mapped[datetime]
    until: Mapped[datetime]
