"""What holds among the versions of an image: who is looked at under lock, who gives way to whom."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from distrib.db.audit import record
from distrib.db.models import Image, ImageState
from distrib.db.references import image_name, is_listed, versions_of
from distrib.errors import Conflict, NotFound
from distrib.trust.imagelist import version_key

SUPERSEDE_GRACE = timedelta(days=30)


def locked(session: Session, identifier: str, version: str) -> Image:
    """The row of one version, for a change. Raises NotFound."""
    row = session.get(Image, (identifier, version), with_for_update=True)
    if row is None:
        raise NotFound(
            f"no image {identifier}@{version}",
            hint="distrib image list names them all",
            image=f"{identifier}@{version}",
        )
    return row


def lock_versions(session: Session, identifier: str) -> None:
    """One change of an image at a time: the newest of its versions is decided over all."""
    query = select(Image).where(Image.identifier == identifier).order_by(Image.version)
    session.scalars(query.with_for_update()).all()


def newer_approved(session: Session, row: Image) -> Image | None:
    """A newer version of the same image that is approved."""
    for other in versions_of(session, row.identifier):
        newer = version_key(other.version) > version_key(row.version)
        if other.state == ImageState.APPROVED and newer:
            return other
    return None


def check_bytes_free(session: Session, row: Image, infohash: str | None, now: datetime) -> None:
    """Nodes keep one volume per info-hash: the same bytes are one image version of a list."""
    same = select(Image).where(Image.infohash == infohash).with_for_update()
    for other in session.scalars(same.where(is_listed(now))).all():
        if (other.identifier, other.version) != (row.identifier, row.version):
            raise Conflict(
                f"image {image_name(row)} has the same bytes as {image_name(other)}, which is"
                f" {other.state}",
                hint="nodes keep one volume per info-hash: use that one, or deny it first",
                image=image_name(row),
                other=image_name(other),
            )


def supersede_others(
    session: Session, row: Image, *, now: datetime, grace: timedelta, actor: str
) -> None:
    """Every other approved version stays leasable for ``grace``, for a way back."""
    for other in versions_of(session, row.identifier):
        if other.state == ImageState.APPROVED and other.version != row.version:
            other.state, other.since = ImageState.SUPERSEDED, now
            other.until = now + grace
            record(
                session,
                at=now,
                actor=actor,
                action="image-superseded",
                subject=image_name(other),
                by=row.version,
            )
