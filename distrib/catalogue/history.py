"""Everything that happened to an image at the site, put together on demand, in time order.

Nothing is kept for it alone: it is read from the signed lists as they came, the audit log, checks
and rollouts. Which site lists carried a version is in the audit rows of their publication, which
say what each brought and took away (the lists themselves are in ``site-lists/``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Text, cast, or_, select
from sqlalchemy.orm import Session

from distrib.catalogue.store import ImageStore
from distrib.db.intake_models import ImageCheck
from distrib.db.models import AcceptedList, Audit, Image, Rollout
from distrib.db.references import aliases_of, identifier_of, versions_of
from distrib.db.session import Database
from distrib.trust.imagelist import ImageListInvalid, parse_image_list
from distrib.trust.signature import open_smime
from distrib.trust.sitelist import parse_image_ref

PUBLISHED = "site-list-published"


@dataclass(frozen=True)
class Step:
    """One thing that happened. ``version`` is empty where it is about all versions."""

    at: datetime
    what: str
    version: str
    actor: str = ""
    text: str = ""
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageHistory:
    """An image with its versions, newest first, and what happened to them, oldest first."""

    identifier: str
    aliases: tuple[str, ...]
    versions: tuple[Image, ...]
    steps: tuple[Step, ...]


class History:
    """Histories of images."""

    def __init__(self, *, database: Database, store: ImageStore) -> None:
        self._database = database
        self._store = store

    def of(self, reference: str) -> ImageHistory:
        """Of the image, or the one version, that ``reference`` names. Raises NotFound."""
        wanted = parse_image_ref(reference)
        with self._database.reading() as session:
            identifier = identifier_of(session, wanted.name)
            versions = versions_of(session, identifier)
            steps = [
                *self._lists(session, versions),
                *_audited(session, identifier),
                *_site_lists(session, identifier),
                *_checks(session, identifier),
                *_rollouts(session, identifier),
            ]
            aliases = aliases_of(session, identifier)
        if wanted.version is not None:
            versions = [row for row in versions if row.version == wanted.version]
            steps = [step for step in steps if step.version in {"", wanted.version}]
        # What one transaction did has one time: the order above is that of cause and effect.
        steps.sort(key=lambda step: step.at)
        return ImageHistory(identifier, tuple(aliases), tuple(versions), tuple(steps))

    def _lists(self, session: Session, versions: list[Image]) -> Iterator[Step]:
        """The endorser's lists that named the image, and the first of those that no longer did."""
        identifier = versions[0].identifier
        owners = {row.list_identifier for row in versions if row.proposed_by is None}
        query = select(AcceptedList).where(AcceptedList.identifier.in_(owners))
        named_before = False
        for row in session.scalars(query.order_by(AcceptedList.accepted_at)):
            named = self._named_in(row, identifier)
            detail = {
                "list": row.identifier,
                "list_version": row.version,
                "sha512": row.sha512,
                "created": row.created.isoformat(),
                "expires": row.expires.isoformat(),
                "endorser_dn": row.endorser_dn,
                "endorser_ca": row.endorser_ca,
            }
            if named is None:
                text = f"lists/{row.sha512}.smime cannot be read"
                yield Step(row.accepted_at, "list-unreadable", "", row.accepted_by, text, detail)
                continue
            for version in named:
                text = f"list {row.identifier} {row.version} of {row.endorser_dn}"
                yield Step(row.accepted_at, "list-named", version, row.accepted_by, text, detail)
            if named_before and not named:
                text = f"list {row.identifier} {row.version} no longer names it"
                yield Step(row.accepted_at, "list-omitted", "", row.accepted_by, text, detail)
            named_before = bool(named)

    def _named_in(self, row: AcceptedList, identifier: str) -> list[str] | None:
        try:
            message = self._store.list_file(row.sha512).read_bytes()
            listed = parse_image_list(open_smime(message).document)
        except (OSError, ImageListInvalid):
            return None
        return [image.version for image in listed.images if image.identifier == identifier]


def _audited(session: Session, identifier: str) -> Iterator[Step]:
    query = select(Audit).where(
        or_(
            Audit.subject.startswith(f"{identifier}@", autoescape=True),
            Audit.subject == identifier,
            (Audit.action == "alias-set") & cast(Audit.detail, Text).contains(identifier),
        )
    )
    for row in session.scalars(query.order_by(Audit.id)):
        detail = dict(row.detail)
        text = str(detail.get("reason") or detail.get("message") or "")
        if row.action == "alias-set":
            text = row.subject
        version = row.subject.partition("@")[2] if row.subject.startswith(identifier) else ""
        yield Step(row.at, row.action, version, row.actor, text, detail)


def _site_lists(session: Session, identifier: str) -> Iterator[Step]:
    query = select(Audit).where(
        Audit.action == PUBLISHED, cast(Audit.detail, Text).contains(identifier)
    )
    for row in session.scalars(query.order_by(Audit.id)):
        for key, what in (("added", "site-list-carries"), ("removed", "site-list-drops")):
            for name in row.detail.get(key, ()):
                named, _, version = str(name).partition("@")
                if named == identifier:
                    text = f"site list {row.subject}"
                    detail = {"site_list": row.subject, "sha512": row.detail.get("sha512")}
                    yield Step(row.at, what, version, row.actor, text, detail)


def _checks(session: Session, identifier: str) -> Iterator[Step]:
    query = select(ImageCheck).where(ImageCheck.identifier == identifier)
    for row in session.scalars(query.order_by(ImageCheck.at, ImageCheck.name)):
        text = f"{row.name}: {row.outcome}" + (f" ({row.text})" if row.text else "")
        detail = {"check": row.name, "outcome": row.outcome}
        yield Step(row.at, "image-checked", row.version, "", text, detail)


def _rollouts(session: Session, identifier: str) -> Iterator[Step]:
    query = select(Rollout).where(Rollout.identifier == identifier)
    for row in session.scalars(query.order_by(Rollout.accepted_at)):
        text = f"{row.id} to {row.selector}"
        detail = {"rollout": row.id, "selector": row.selector}
        yield Step(row.accepted_at, "rollout-started", row.version, row.accepted_by, text, detail)
        if row.ended_at is not None:
            what = f"rollout-{row.state}"
            yield Step(row.ended_at, what, row.version, row.ended_by or "", row.id, detail)
