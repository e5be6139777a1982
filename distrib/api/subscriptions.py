"""Subscriptions: which lists are followed, how their last polls ended, and polls on demand."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field, SecretStr
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from distrib.api.access import Admin, Operator, Use, Viewer
from distrib.api.body import Body, RowNumber
from distrib.api.services import Services
from distrib.api.views import time_text
from distrib.catalogue.schedule import age, is_stale
from distrib.catalogue.subscriptions import ALARM_AGE_S, INTERVAL_S, Wanted
from distrib.db.intake_models import Subscription, Take
from distrib.db.models import AcceptedList, Image
from distrib.db.references import image_name, is_listed

router = APIRouter(tags=["subscriptions"])

_MONTH_S = 31 * 86400
_Name = Annotated[str, Field(min_length=1, max_length=2000)]
_Line = r"^[^\x00-\x1f\x7f]+$"


class SubscriptionRequest(Body):
    """``dn`` and ``ca``: who signs the list. ``ca_file`` is a path on the head."""

    url: Annotated[str, Field(min_length=1, max_length=2000, pattern=_Line)]
    dn: _Name
    ca: _Name
    identifier: (
        Annotated[str, Field(pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")]
        | None
    ) = None
    take: Take = Take.KNOWN
    username: Annotated[str, Field(max_length=255, pattern=_Line)] | None = None
    password: Annotated[SecretStr, Field(min_length=1, max_length=4096)] | None = None
    ca_file: Annotated[str, Field(max_length=4096, pattern=_Line)] | None = None
    interval_s: Annotated[int, Field(ge=10, le=_MONTH_S)] = INTERVAL_S
    alarm_age_s: Annotated[int, Field(ge=10, le=12 * _MONTH_S)] = ALARM_AGE_S


@router.get("/subscriptions")
def list_subscriptions(services: Use, _actor: Viewer) -> dict[str, Any]:
    """Every one, with how its last poll ended."""
    now = services.clock()
    with services.database.reading() as session:
        rows = session.scalars(select(Subscription).order_by(Subscription.id)).all()
        return {"subscriptions": [_view(session, row, now) for row in rows]}


@router.get("/subscriptions/{subscription_id}")
def show(subscription_id: RowNumber, services: Use, _actor: Viewer) -> dict[str, Any]:
    """One, with the images of its list."""
    return _one(services, services.catalogue.subscriptions.get(subscription_id))


@router.post("/subscriptions", status_code=201)
async def subscribe(body: SubscriptionRequest, services: Use, actor: Admin) -> dict[str, Any]:
    """Follow a list. It is polled at once; the answer does not wait for that."""
    wanted = Wanted(
        url=body.url,
        dn=body.dn,
        ca=body.ca,
        identifier=body.identifier,
        take=body.take,
        username=body.username,
        password=body.password.get_secret_value() if body.password else None,
        ca_file=Path(body.ca_file) if body.ca_file else None,
        interval_s=body.interval_s,
        alarm_age_s=body.alarm_age_s,
    )
    row = await asyncio.to_thread(services.catalogue.subscriptions.add, wanted, actor=actor.name)
    services.catalogue.schedule.wake()
    return await asyncio.to_thread(_one, services, row)


@router.delete("/subscriptions/{subscription_id}")
def unsubscribe(subscription_id: RowNumber, services: Use, actor: Admin) -> dict[str, Any]:
    """Follow it no more."""
    services.catalogue.subscriptions.remove(subscription_id, actor=actor.name)
    return {"removed": subscription_id}


@router.post("/subscriptions/{subscription_id}/poll")
async def poll(subscription_id: RowNumber, services: Use, actor: Operator) -> dict[str, Any]:
    """Poll now, and wait; ``outcome`` says how it ended, also where it failed."""
    row = await services.catalogue.schedule.poll(subscription_id, actor=actor.name)
    return await asyncio.to_thread(_one, services, row)


def _one(services: Services, row: Subscription) -> dict[str, Any]:
    now = services.clock()
    with services.database.reading() as session:
        return _view(session, row, now) | {"images": _images(session, row, now)}


def _view(session: Session, row: Subscription, now: datetime) -> dict[str, Any]:
    return {
        "id": row.id,
        "url": row.url,
        "identifier": row.identifier,
        "dn": row.dn,
        "ca": row.ca,
        "take": row.take,
        "username": row.username,
        "ca_file": row.ca_file,
        "interval_s": row.interval_s,
        "alarm_age_s": row.alarm_age_s,
        "added_at": time_text(row.added_at),
        "added_by": row.added_by,
        "polled_at": time_text(row.polled_at),
        "fresh_at": time_text(row.ok_at),
        "age_s": int(age(row, now).total_seconds()),
        "stale": is_stale(row, now),
        "next_at": time_text(row.next_at),
        "failures": row.failures,
        "outcome": _outcome(row),
        "list": _list(session, row, now),
        "counts": _counts(session, row),
    }


def _outcome(row: Subscription) -> dict[str, Any] | None:
    if row.code is None:
        return None
    return {
        "code": row.code,
        "exit": row.reasons.get("exit", 0),
        "message": row.text,
        "hint": row.reasons.get("hint", ""),
        "reasons": row.reasons.get("reasons", []),
        "remarks": row.reasons.get("remarks", []),
    }


def _list(session: Session, row: Subscription, now: datetime) -> dict[str, Any] | None:
    accepted = session.get(AcceptedList, row.message_sha512) if row.message_sha512 else None
    if accepted is None:
        return None
    return {
        "sha512": accepted.sha512,
        "version": accepted.version,
        "created": time_text(accepted.created),
        "expires": time_text(accepted.expires),
        "expired": accepted.expires <= now,
        "signer_dn": accepted.endorser_dn,
        "accepted_at": time_text(accepted.accepted_at),
    }


def _counts(session: Session, row: Subscription) -> dict[str, int]:
    if row.identifier is None:
        return {}
    query = select(Image.state, func.count()).where(Image.list_identifier == row.identifier)
    found = session.execute(query.group_by(Image.state))
    return {str(state): int(count) for state, count in found}


def _images(session: Session, row: Subscription, now: datetime) -> list[dict[str, Any]]:
    if row.identifier is None:
        return []
    query = select(Image).where(Image.list_identifier == row.identifier)
    listed = set(
        session.execute(
            select(Image.identifier, Image.version).where(
                Image.list_identifier == row.identifier, is_listed(now)
            )
        ).all()
    )
    return [
        {
            "image": image_name(image),
            "title": image.title,
            "state": image.state,
            "since": time_text(image.since),
            "reason": image.reason,
            "lapsed_at": time_text(image.lapsed_at),
            "listed": (image.identifier, image.version) in listed,
        }
        for image in session.scalars(query.order_by(Image.identifier, Image.version))
    ]
