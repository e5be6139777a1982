"""The register of subscriptions: which lists are polled, for whom, and what of them is taken."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from distrib.catalogue import transitions
from distrib.catalogue.clock import Clock
from distrib.catalogue.endorsers import parsed_name
from distrib.catalogue.evidence import Evidence
from distrib.catalogue.fetching import check_url
from distrib.catalogue.passwords import Passwords
from distrib.catalogue.web import tls_context
from distrib.db.audit import record
from distrib.db.counters import LIST_ACCEPTANCES, rise
from distrib.db.intake_models import Subscription, Take
from distrib.db.models import Image, ImageState
from distrib.db.session import Database
from distrib.errors import ConfigInvalid, Conflict, NotFound

INTERVAL_S = 3600
ALARM_AGE_S = 86400


@dataclass(frozen=True)
class Wanted:
    """A subscription to be. ``dn`` and ``ca``: who signs the list; ``password`` is never shown."""

    url: str
    dn: str
    ca: str
    identifier: str | None = None
    take: Take = Take.KNOWN
    username: str | None = None
    password: str | None = None
    ca_file: Path | None = None
    interval_s: int = INTERVAL_S
    alarm_age_s: int = ALARM_AGE_S

    def __repr__(self) -> str:
        return f"Wanted(url={self.url!r})"


class Subscriptions:
    """Adds, removes and shows them; ``polling`` polls them."""

    def __init__(
        self, *, database: Database, passwords: Passwords, evidence: Evidence, clock: Clock
    ) -> None:
        self._database = database
        self._passwords = passwords
        self._evidence = evidence
        self._clock = clock

    def add(self, wanted: Wanted, *, actor: str) -> Subscription:
        """A subscription, due at once.

        Raises ConfigInvalid (URL, CA file, user name without password), OperatorError (names),
        Conflict where the URL or the list has one.
        """
        check_url(wanted.url)
        _check_access(wanted)
        dn, ca = parsed_name("dn", wanted.dn), parsed_name("ca", wanted.ca)
        identifier = wanted.identifier.lower() if wanted.identifier else None
        with self._database.transaction() as session:
            # One at a time, also beside polls: an identifier has one subscription.
            rise(session, LIST_ACCEPTANCES)
            found = session.scalar(select(Subscription).where(Subscription.url == wanted.url))
            if found is not None:
                raise Conflict(
                    f"subscription {found.id} has that URL",
                    hint="unsubscribe first, or replace the endorser: distrib endorser add",
                    subscription=found.id,
                )
            if identifier is not None:
                check_unbound(session, identifier, but=None)
            now = self._clock()
            row = Subscription(
                url=wanted.url,
                identifier=identifier,
                dn=dn,
                ca=ca,
                take=wanted.take,
                username=wanted.username,
                ca_file=str(wanted.ca_file) if wanted.ca_file else None,
                interval_s=wanted.interval_s,
                alarm_age_s=wanted.alarm_age_s,
                next_at=now,
                added_at=now,
                added_by=actor,
            )
            session.add(row)
            session.flush()
            # Numbers are used again: what an earlier one of that number left must not count.
            self._evidence.forget(row.id)
            self._passwords.keep(row.id, wanted.password)
            record(
                session,
                at=now,
                actor=actor,
                action="subscribed",
                subject=wanted.url,
                id=row.id,
                dn=dn,
                ca=ca,
                list=identifier,
                take=wanted.take,
                username=wanted.username,
            )
            return row

    def remove(self, subscription_id: int, *, actor: str) -> None:
        """Poll it no more. Images that were taken stay, announced ones are forgotten."""
        with self._database.transaction() as session:
            row = found_subscription(session, subscription_id)
            query = select(Image).where(
                Image.list_identifier == row.identifier, Image.state == ImageState.ANNOUNCED
            )
            for image in session.scalars(query).all() if row.identifier else ():
                transitions.forgotten(session, image, why="unsubscribed")
            session.delete(row)
            record(
                session,
                at=self._clock(),
                actor=actor,
                action="unsubscribed",
                subject=row.url,
                id=row.id,
                list=row.identifier,
            )
        self._passwords.forget(subscription_id)
        self._evidence.forget(subscription_id)

    def get(self, subscription_id: int) -> Subscription:
        """One of them. Raises NotFound."""
        with self._database.reading() as session:
            return found_subscription(session, subscription_id)

    def all(self) -> list[Subscription]:
        """Every one, oldest first."""
        with self._database.reading() as session:
            return list(session.scalars(select(Subscription).order_by(Subscription.id)))


def found_subscription(session: Session, subscription_id: int) -> Subscription:
    """The row, locked for a change. Raises NotFound."""
    row = session.get(Subscription, subscription_id, with_for_update=True)
    if row is None:
        raise NotFound(
            f"no subscription {subscription_id}",
            hint="distrib list show names them all",
            subscription=subscription_id,
        )
    return row


def check_unbound(session: Session, identifier: str, *, but: int | None) -> None:
    """One list has one subscription: else each would see what the other took as a change."""
    query = select(Subscription).where(Subscription.identifier == identifier)
    for row in session.scalars(query):
        if row.id != but:
            raise Conflict(
                f"subscription {row.id} has the list {identifier} already",
                hint=f"it is fetched from {row.url}; unsubscribe one of them",
                subscription=row.id,
                list=identifier,
            )


def _check_access(wanted: Wanted) -> None:
    if (wanted.username is None) != (wanted.password is None):
        raise ConfigInvalid("user name and password go together", hint="give both, or none")
    if wanted.username is not None and (":" in wanted.username or not wanted.username):
        raise ConfigInvalid("a user name has no colon", hint="see what the list's server gave you")
    local = not wanted.url.startswith("https:")
    if local and (wanted.username is not None or wanted.ca_file is not None):
        raise ConfigInvalid("a file takes no password and no CA", hint="leave them away")
    if wanted.ca_file is not None:
        if not wanted.ca_file.is_absolute():
            raise ConfigInvalid(
                f"ca_file = {wanted.ca_file}: not absolute", hint="a path on the head"
            )
        tls_context(wanted.ca_file)
