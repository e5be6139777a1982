"""Endings in the database, and in the audit log who was ended; called in a thread."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from distrib.bus.messages import LeaseHolder
from distrib.db import models, use_models
from distrib.db.audit import record
from distrib.rollout.ending import IN_FORCE, EndedUses, Ending
from distrib.rollout.fleet import Fleet

CONTROLLER = "controller"


def load_endings(session: Session, now: datetime) -> list[Ending]:
    """Those in force: the image is still denied or revoked, and the time is not over."""
    query = (
        select(use_models.Ending)
        .join(
            models.Image,
            (models.Image.identifier == use_models.Ending.identifier)
            & (models.Image.version == use_models.Ending.version),
        )
        .where(
            models.Image.state.in_((models.ImageState.DENIED, models.ImageState.REVOKED)),
            use_models.Ending.until > now,
        )
    )
    return [
        Ending(row.identifier, row.version, row.infohash, row.text, row.asked_by, row.until)
        for row in session.scalars(query)
    ]


def add_ending(
    session: Session,
    image: models.Image,
    *,
    reason: str,
    uses: list[dict[str, Any]],
    actor: str,
    now: datetime,
) -> None:
    """All that runs from the image is to be ended; asked again, it is in force for longer."""
    session.merge(
        use_models.Ending(
            identifier=image.identifier,
            version=image.version,
            infohash=image.infohash or "",
            text=reason[:500],
            asked_by=actor,
            asked_at=now,
            until=now + IN_FORCE,
        )
    )
    record(
        session,
        at=now,
        actor=actor,
        action="uses-to-be-ended",
        subject=f"{image.identifier}@{image.version}",
        reason=reason,
        uses=uses,
    )


def uses_of(fleet: Fleet, infohash: str, identifier: str, version: str) -> list[dict[str, Any]]:
    """Who uses an image version on which node, as the nodes last said; also of those offline."""
    uses = []
    for node in sorted(fleet.inventory):
        held = fleet.held(node, infohash)
        if held is None or not held.leases:
            continue
        if (held.identifier, held.version) == (identifier, version):
            uses.append(
                {
                    "node": node,
                    "online": fleet.is_online(node),
                    "leases": held.leases,
                    "holders": [holder_text(holder) for holder in held.holders],
                }
            )
    return uses


def note_ended(session: Session, ended: Iterable[EndedUses], *, now: datetime) -> None:
    """Who was ended on which node, as the node told it before it was."""
    for one in ended:
        record(
            session,
            at=now,
            actor=CONTROLLER,
            action="uses-ended",
            subject=one.ending.image,
            node=one.node,
            leases=one.leases,
            reason=one.ending.text,
            asked_by=one.ending.asked_by,
            holders=[holder_text(holder) for holder in one.holders],
        )


def holder_text(holder: LeaseHolder) -> dict[str, Any]:
    """Lease, user, and job or process."""
    told = holder.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    return {key: told[key] for key in ("lease", "user", "kind", "job", "pid") if key in told}
