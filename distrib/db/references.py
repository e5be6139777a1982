"""``ALIAS | UUID``, optionally ``@VERSION``: which image version an operator means."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import Session

from distrib.db.models import Alias, Image, ImageState
from distrib.errors import NotFound, TrustRefused
from distrib.trust.imagelist import version_key
from distrib.trust.sitelist import parse_image_ref

#: What a node may hold.
USABLE = frozenset({ImageState.APPROVED, ImageState.SUPERSEDED})


def is_listed(now: datetime) -> ColumnElement[bool]:
    """Whether the site list of ``now`` has the image version."""
    return and_(
        Image.state.in_(USABLE),
        Image.infohash.is_not(None),
        or_(Image.expires.is_(None), Image.expires > now),
        or_(Image.endorsed_until.is_(None), Image.endorsed_until > now),
        or_(Image.until.is_(None), Image.until > now),
    )


def require_unexpired(image: Image, now: datetime) -> None:
    """Raises TrustRefused where the image's list or its entry has expired (it is ``lapsed``)."""
    if image.endorsed_until is not None and image.endorsed_until <= now:
        raise TrustRefused(
            f"image {image_name(image)}: its list or its entry expired at"
            f" {image.endorsed_until:%Y-%m-%dT%H:%M:%SZ}",
            hint="ask the endorser for a newer list; then distrib list poll, or distrib image add",
            image=image_name(image),
        )


def image_name(image: Image) -> str:
    """``UUID@VERSION``, as messages and logs write it."""
    return f"{image.identifier}@{image.version}"


def identifier_of(session: Session, name: str) -> str:
    """The UUID that an alias or UUID names; NotFound where there is no such image."""
    found = session.get(Alias, name)
    identifier = found.identifier if found is not None else name
    query = select(Image.identifier).where(Image.identifier == identifier).limit(1)
    if session.scalar(query) is None:
        raise NotFound(
            f"no image {name[:80]!r}", hint="distrib image list names them all", image=name[:80]
        )
    return identifier


def versions_of(session: Session, identifier: str) -> list[Image]:
    """Every version of an image, newest first."""
    rows = session.scalars(select(Image).where(Image.identifier == identifier))
    return sorted(rows, key=lambda image: version_key(image.version), reverse=True)


def resolve(
    session: Session, reference: str, *, states: Collection[ImageState] | None = None
) -> Image:
    """The image version that ``reference`` means.

    Without a version: the approved one, else the newest of those in ``states`` (None: any).
    Raises NotFound, which says what there is instead, and ImageRefInvalid.
    """
    parsed = parse_image_ref(reference)
    name, version = parsed.name, parsed.version
    versions = versions_of(session, identifier_of(session, name))
    wanted = [image for image in versions if version in {None, image.version}]
    if not wanted:
        known = ", ".join(image.version for image in versions[:8])
        raise NotFound(
            f"image {name} has no version {str(version)[:80]!r}",
            hint=f"there are {known}",
            image=reference[:120],
        )
    fitting = [image for image in wanted if states is None or image.state in states]
    if not fitting:
        found = wanted[0]
        raise NotFound(
            f"image {reference[:120]} is {found.state}, not {' or '.join(sorted(states or ()))}",
            hint="distrib image approve, or name another version",
            image=image_name(found),
        )
    approved = (image for image in fitting if image.state == ImageState.APPROVED)
    return next(approved, fitting[0])


def aliases_of(session: Session, identifier: str) -> list[str]:
    """The site's names of an image, sorted."""
    query = select(Alias.alias).where(Alias.identifier == identifier).order_by(Alias.alias)
    return list(session.scalars(query))
