"""The audit log: one row for each change, written in the transaction of the change."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from distrib.db.models import Audit

ACTOR_MAX_CHARS = 128


def record(
    session: Session, *, at: datetime, actor: str, action: str, subject: str, **detail: Any
) -> None:
    """Note that ``actor`` did ``action`` to ``subject``; ``detail`` is JSON."""
    session.add(
        Audit(
            at=at,
            actor=actor[:ACTOR_MAX_CHARS],
            action=action,
            subject=subject,
            detail=dict(detail),
        )
    )


def newest(session: Session, *, limit: int, before_id: int | None = None) -> list[Audit]:
    """Rows, newest first; ``before_id`` pages on."""
    query = select(Audit).order_by(Audit.id.desc()).limit(limit)
    if before_id is not None:
        query = query.where(Audit.id < before_id)
    return list(session.scalars(query))
