"""The site list: built from the database, signed, kept, and handed on to whoever tells the nodes.

Its version is ``max(stored + 1, unix time)``, and above every list that was kept on disk, so that
neither an old database nor a slow clock alone makes it go down. A list that the site's own verifier
refuses is not published.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from cryptography import x509
from sqlalchemy import select
from sqlalchemy.orm import Session

from distrib.catalogue.clock import Clock
from distrib.catalogue.entries import image_of
from distrib.catalogue.identity import SiteIdentity
from distrib.catalogue.store import ImageStore, write_atomically
from distrib.catalogue.telling import tell_published
from distrib.db.audit import record
from distrib.db.counters import (
    CATALOGUE_CHANGES,
    CATALOGUE_PUBLISHED,
    SITE_LIST_VERSION,
    rise,
    set_to,
    value_of,
)
from distrib.db.models import Image, ImageState
from distrib.db.outbox import one_run
from distrib.db.references import aliases_of, is_listed
from distrib.db.session import Database
from distrib.errors import DistribError
from distrib.trust.chain import TrustMaterial
from distrib.trust.imagelist import Endorser, ImageListInvalid, version_key
from distrib.trust.names import slash_form
from distrib.trust.revocation import CrlPolicy
from distrib.trust.signature import open_smime, sign_smime
from distrib.trust.sitelist import (
    DEFAULT_MAX_AGE_S,
    Audience,
    ControllerKey,
    Origin,
    SiteImage,
    SiteList,
    parse_site_list,
    render_site_list,
    verify_site_list,
)

log = structlog.get_logger(__name__)

RESIGN_INTERVAL = timedelta(hours=1)
LOOK_S = 5.0
"""How often it is looked whether a list is due, and whether certificate and key were replaced."""

_RETRY_S = 30.0


@dataclass(frozen=True)
class PublishedList:
    """A signed site list; ``message`` is what nodes get."""

    version: int
    created: datetime
    images: int
    message: bytes


class Publisher:
    """Signs at each change and every ``resign_interval``; ``on_published`` gets each message.

    ``identity`` may be a function that gives the identity as it is now: a key that was replaced
    signs the next list. ``trust`` is the site's own CA: with it every list is verified as a node
    would, before it leaves. ``on_published`` is called in the thread that published, in the order
    of versions; it must not publish.
    """

    def __init__(
        self,
        *,
        database: Database,
        store: ImageStore,
        identity: SiteIdentity | Callable[[], SiteIdentity],
        clock: Clock,
        trust: Callable[[], TrustMaterial] | None = None,
        crls: CrlPolicy = "if-present",
        max_age_s: float = DEFAULT_MAX_AGE_S,
        resign_interval: timedelta = RESIGN_INTERVAL,
        on_published: Callable[[bytes], None] | None = None,
    ) -> None:
        self._database = database
        self._store = store
        self._identity = identity if callable(identity) else lambda: identity
        self._clock = clock
        self._trust = trust
        self._crls: CrlPolicy = crls
        self._max_age = timedelta(seconds=max_age_s)
        self._resign_interval = resign_interval
        self._on_published = on_published or (lambda _message: None)
        self._one_at_a_time = threading.Lock()
        self._read_last: tuple[bytes, tuple[SiteList, x509.Certificate | None] | None] = (b"", None)

    def current(self) -> bytes | None:
        """The newest signed list, as nodes get it; None before the first."""
        try:
            return self._store.site_list_file.read_bytes()
        except FileNotFoundError:
            return None

    def publish(self, *, why: str, actor: str = "controller") -> PublishedList:
        """Build, sign, keep and hand on a new list; TrustRefused if nodes would refuse it."""
        with self._one_at_a_time:
            published = self._publish(why=why, actor=actor)
            # Under the lock: nobody may hand an older list on after a newer one.
            self._on_published(published.message)
        log.info("site-list-published", version=published.version, images=published.images, why=why)
        return published

    def publish_if_due(self) -> PublishedList | None:
        """A new list if catalogue, keys or names have changed, or the last has grown old."""
        why = self._why_due()
        return None if why is None else self.publish(why=why)

    async def keep_fresh(self) -> None:
        """Publish whenever it is due, for ever; a failure is logged and tried again."""
        while True:
            wait_s = min(LOOK_S, self._resign_interval.total_seconds() / 10)
            try:
                await asyncio.to_thread(self.publish_if_due)
            except DistribError as error:
                log.warning("site-list-not-published", why=error.message, code=error.code)
                wait_s = _RETRY_S
            await asyncio.sleep(wait_s)

    def _why_due(self) -> str | None:
        with self._database.reading() as session:
            changes = value_of(session, CATALOGUE_CHANGES)
            published = value_of(session, CATALOGUE_PUBLISHED)
        if changes > published:
            return "change"
        current = self._current_list()
        if current is None:
            return "first"
        if not self._speaks_for_us(*current):
            return "identity"
        # A list from the future comes from a clock that was wrong: replace it.
        age = self._clock() - current[0].created
        return "age" if age >= self._resign_interval or age < -self._resign_interval else None

    def _current_list(self) -> tuple[SiteList, x509.Certificate | None] | None:
        """The newest list and who signed it."""
        message = self.current()
        if message is None:
            return None
        if message != self._read_last[0]:
            self._read_last = (message, _read(message))
        return self._read_last[1]

    def _speaks_for_us(self, current: SiteList, signer: x509.Certificate | None) -> bool:
        """Whether signer, keys and names are ours: nodes refuse orders of a key that is not in it,
        and lists of a catalogue certificate that was revoked."""
        ours = self._identity()
        keys = {ControllerKey.of(key) for key in ours.controller_keys}
        return (
            set(current.controller_keys) == keys
            and current.identifier == ours.identifier
            and current.site == ours.site
            and signer == ours.certificate
        )

    def _publish(self, *, why: str, actor: str) -> PublishedList:
        now, identity = self._clock(), self._identity()
        with one_run(), self._database.transaction() as session:
            before = self._carried_by(value_of(session, SITE_LIST_VERSION))
            floor = max(self._store.newest_site_list_version() + 1, int(now.timestamp()))
            version = rise(session, SITE_LIST_VERSION, at_least=floor)
            site_list = self._build(session, identity, version, now)
            message = sign_smime(
                render_site_list(site_list),
                identity.certificate,
                identity.key,
                identity.chain,
            )
            self._check(message, identity, now)
            carried = _carried(site_list)
            set_to(session, CATALOGUE_PUBLISHED, value_of(session, CATALOGUE_CHANGES))
            record(
                session,
                at=now,
                actor=actor,
                action="site-list-published",
                subject=str(version),
                images=len(site_list.images),
                why=why,
                sha512=hashlib.sha512(message).hexdigest(),
                signer_serial=f"{identity.certificate.serial_number:x}",
                added=sorted(carried - before),
                removed=sorted(before - carried),
            )
            tell_published(session, before=before, after=carried, at=now)
            # On disk before the commit: a version that a node may have seen is never given twice.
            write_atomically(self._store.site_list_version_file(version), message, mode=0o444)
            write_atomically(self._store.site_list_file, message)
        return PublishedList(version, now, len(site_list.images), message)

    def _carried_by(self, version: int) -> frozenset[str]:
        """What the last list that was published carried; nothing where it cannot be read."""
        try:
            message = self._store.site_list_version_file(version).read_bytes()
        except OSError:
            return frozenset()
        found = _read(message)
        return frozenset() if found is None else _carried(found[0])

    def _build(
        self, session: Session, identity: SiteIdentity, version: int, now: datetime
    ) -> SiteList:
        rows = session.scalars(
            select(Image).where(is_listed(now)).order_by(Image.identifier, Image.version)
        ).all()
        newest = {row.identifier: row for row in sorted(rows, key=lambda r: version_key(r.version))}
        return SiteList(
            identifier=identity.identifier,
            version=str(version),
            created=now.replace(microsecond=0),
            expires=now.replace(microsecond=0) + self._max_age,
            site=identity.site,
            endorser=Endorser(
                dn=slash_form(identity.certificate.subject),
                ca=slash_form(identity.certificate.issuer),
                email=identity.email,
                creator=identity.site,
            ),
            images=tuple(
                _site_image(session, row, named=newest[row.identifier] is row) for row in rows
            ),
            controller_keys=tuple(ControllerKey.of(key) for key in identity.controller_keys),
            title=identity.site,
            description=f"Images approved at {identity.site}",
            source=identity.url,
            uri=identity.url,
        )

    def _check(self, message: bytes, identity: SiteIdentity, now: datetime) -> None:
        if self._trust is not None:
            verify_site_list(
                message,
                trust=self._trust(),
                now=now,
                identifier=identity.identifier,
                crls=self._crls,
            ).require()


def _read(message: bytes) -> tuple[SiteList, x509.Certificate | None] | None:
    """A site list of our own, and its signer; None for what is none."""
    opened = open_smime(message)
    try:
        return parse_site_list(opened.document), opened.signer
    except ImageListInvalid:
        return None


def _carried(site_list: SiteList) -> frozenset[str]:
    return frozenset(f"{image.identifier}@{image.version}" for image in site_list.images)


def _site_image(session: Session, row: Image, *, named: bool) -> SiteImage:
    """The entry of a version; the newest that is listed is ``named``: it bears the aliases."""
    users = row.audience.get("users")
    audience: Audience = "all" if users is None else tuple(users)
    approved = row.state == ImageState.APPROVED
    return SiteImage(
        image=image_of(row.entry),
        infohash=row.infohash or "",
        size_bytes=row.size_bytes or 0,
        piece_bytes=row.piece_bytes or 0,
        sha512=row.sha512 or "",
        origin=Origin(
            list=row.list_identifier,
            list_version=row.list_version,
            endorser_dn=row.endorser_dn,
            endorser_ca=row.endorser_ca,
            sha512=row.endorsed_sha512,
            size_bytes=row.endorsed_size_bytes,
            proposed_by=row.proposed_by or "",
        ),
        state="approved" if approved else "superseded",
        until=row.until,
        aliases=tuple(aliases_of(session, row.identifier)) if named else (),
        audience=audience,
    )
