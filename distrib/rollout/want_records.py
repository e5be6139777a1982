"""Wants in the database, and which image version one is about; called in a thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from distrib.db.audit import record
from distrib.db.models import Image, ImageState
from distrib.db.references import identifier_of, image_name, is_listed
from distrib.db.use_models import Want
from distrib.errors import Forbidden, NotFound
from distrib.rollout.desired import Assigned
from distrib.rollout.wanting import Wish
from distrib.trust.imagelist import version_key
from distrib.trust.sitelist import parse_image_ref


def wanted_image(
    session: Session, wish: Wish, assigned: Mapping[str, Iterable[Assigned]], now: datetime
) -> Image:
    """The image version on the site list that a wish is about, if its audience admits the user.

    A bare IMAGE is the version that is active on most nodes, and the approved one where it is on
    none: only a rollout moves what is active. Raises NotFound, Forbidden, ImageRefInvalid.
    """
    ref = parse_image_ref(wish.image)
    identifier = identifier_of(session, ref.name)
    query = select(Image).where(Image.identifier == identifier, is_listed(now))
    listed = {row.version: row for row in session.scalars(query)}
    fitting = listed if ref.version is None else {ref.version: listed.get(ref.version)}
    rows = [row for row in fitting.values() if row is not None]
    if not rows:
        raise NotFound(
            f"image {wish.image[:120]} is not on the site list",
            hint="only what is approved is brought to nodes: distrib image show",
            image=wish.image[:120],
        )
    row = max(rows, key=_by_use(assigned, identifier))
    users = row.audience.get("users")
    if users is not None and wish.user not in users:
        raise Forbidden(
            f"image {image_name(row)} is not for user {wish.user or 'nobody'}",
            hint="the site decides its audience; a want names the job's user",
            image=image_name(row),
        )
    return row


def keep_want(
    session: Session,
    wish: Wish,
    image: Image,
    *,
    rollout: str | None,
    now: datetime,
    until: datetime,
) -> None:
    """The want counts until then; a new one is in the audit log."""
    row = session.get(Want, (image.identifier, image.version, wish.job))
    if row is None:
        row = Want(identifier=image.identifier, version=image.version, job=wish.job, first_at=now)
        session.add(row)
        record(
            session,
            at=now,
            actor=wish.asked_by,
            action="image-wanted",
            subject=image_name(image),
            job=wish.job,
            user=wish.user,
            nodes=wish.nodes,
            rollout=rollout,
        )
    row.user, row.selector, row.asked_by = wish.user, wish.nodes, wish.asked_by
    row.last_at, row.until, row.rollout = now, until, rollout or row.rollout


def wants(session: Session, now: datetime) -> list[tuple[Want, Image]]:
    """Those that count, newest first."""
    query = (
        select(Want, Image)
        .where(Image.identifier == Want.identifier, Image.version == Want.version)
        .where(Want.until > now)
        .order_by(Want.last_at.desc(), Want.job)
    )
    return [(want, image) for want, image in session.execute(query)]


def drop_want(session: Session, identifier: str, job: str) -> int:
    """The job wants the image no more; how many wants that were."""
    query = delete(Want).where(Want.identifier == identifier, Want.job == job)
    return len(session.scalars(query.returning(Want.job)).all())


def drop_lapsed(session: Session, now: datetime) -> set[str]:
    """Forget wants whose time is over; the rollouts that a want still counts on."""
    session.execute(delete(Want).where(Want.until <= now))
    return {name for name in session.scalars(select(Want.rollout).distinct()) if name}


def _by_use(
    assigned: Mapping[str, Iterable[Assigned]], identifier: str
) -> Callable[[Image], tuple[int, bool, tuple[tuple[int, int, str], ...]]]:
    used = Counter(
        one.version
        for held in assigned.values()
        for one in held
        if one.identifier == identifier and one.active
    )
    return lambda row: (
        used[row.version],
        row.state == ImageState.APPROVED,
        version_key(row.version),
    )
