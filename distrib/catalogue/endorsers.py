"""Who may sign which image list."""

from __future__ import annotations

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from distrib.catalogue.clock import Clock
from distrib.db.audit import record
from distrib.db.intake_models import Subscription
from distrib.db.models import Endorser
from distrib.db.session import Database
from distrib.errors import Conflict, NotFound, OperatorError
from distrib.trust.names import DistinguishedName
from distrib.trust.verify import AuthorisedEndorser


class Endorsers:
    """The site's register of endorsers."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def add(
        self,
        *,
        dn: str,
        ca: str,
        list_identifier: str | None,
        actor: str,
        replace: bool = False,
    ) -> Endorser:
        """Let ``dn``, certified by ``ca``, sign one list (None: any list).

        ``replace``: and nobody else who was named for that list, a subscription's endorser
        included; those of any list stay. Raises OperatorError for what is no name, or nothing to
        replace in; Conflict if the entry is there already.
        """
        subject, issuer = parsed_name("dn", dn), parsed_name("ca", ca)
        wanted = list_identifier.lower() if list_identifier else None
        with self._database.transaction() as session:
            if replace:
                self._give_way(session, subject, issuer, wanted, actor=actor)
            # SQL's UNIQUE takes two NULLs for different.
            for row in session.scalars(select(Endorser)):
                if (row.dn, row.ca, row.list_identifier) == (subject, issuer, wanted):
                    raise Conflict(
                        f"endorser {row.id} is the same", hint="nothing to do", endorser=row.id
                    )
            added = Endorser(
                dn=subject,
                ca=issuer,
                list_identifier=wanted,
                added_at=self._clock(),
                added_by=actor,
            )
            session.add(added)
            session.flush()
            record(
                session,
                at=added.added_at,
                actor=actor,
                action="endorser-added",
                subject=subject,
                ca=issuer,
                list=wanted,
                id=added.id,
            )
            return added

    def remove(self, endorser_id: int, *, actor: str) -> None:
        """No list of this endorser is accepted any more; what was approved stays."""
        with self._database.transaction() as session:
            found = session.get(Endorser, endorser_id)
            if found is None:
                raise NotFound(
                    f"no endorser {endorser_id}",
                    hint="distrib endorser list",
                    endorser=endorser_id,
                )
            session.delete(found)
            record(
                session,
                at=self._clock(),
                actor=actor,
                action="endorser-removed",
                subject=found.dn,
                ca=found.ca,
                list=found.list_identifier,
                id=endorser_id,
            )

    def _give_way(
        self, session: Session, dn: str, ca: str, list_identifier: str | None, *, actor: str
    ) -> None:
        if list_identifier is None:
            raise OperatorError("replace whom? no list is named", hint="name the list's UUID")
        named = select(Endorser).where(Endorser.list_identifier == list_identifier)
        gone = [{"dn": row.dn, "ca": row.ca} for row in session.scalars(named)]
        session.execute(delete(Endorser).where(Endorser.list_identifier == list_identifier))
        followed = select(Subscription).where(Subscription.identifier == list_identifier)
        for row in session.scalars(followed):
            gone.append({"dn": row.dn, "ca": row.ca})
            row.dn, row.ca = dn, ca
        record(
            session,
            at=self._clock(),
            actor=actor,
            action="endorsers-replaced",
            subject=dn,
            ca=ca,
            list=list_identifier,
            gone=gone,
        )

    def of_subscriptions(self) -> list[Subscription]:
        """Subscriptions: each names one endorser more, for its list."""
        with self._database.reading() as session:
            return list(session.scalars(select(Subscription).order_by(Subscription.id)))

    def all(self) -> list[Endorser]:
        """Every entry, oldest first."""
        with self._database.reading() as session:
            return list(session.scalars(select(Endorser).order_by(Endorser.id)))


def authorised_for(session: Session, list_identifier: str | None) -> tuple[AuthorisedEndorser, ...]:
    """Who may sign the list of that identifier; maybe nobody."""
    query = select(Endorser).where(
        or_(Endorser.list_identifier.is_(None), Endorser.list_identifier == list_identifier)
    )
    named = [AuthorisedEndorser(row.dn, row.ca) for row in session.scalars(query)]
    if list_identifier is not None:
        followed = select(Subscription).where(Subscription.identifier == list_identifier)
        named += [AuthorisedEndorser(row.dn, row.ca) for row in session.scalars(followed)]
    return tuple(named)


def parsed_name(key: str, text: str) -> str:
    """A name in slash form, whatever form it came in. Raises OperatorError, naming ``key``."""
    try:
        return DistinguishedName.parse(text).slash()
    except ValueError as error:
        raise OperatorError(
            f"{key}: {error}", hint="write it as /DC=org/O=Experiment/CN=Name, or as RFC 4514"
        ) from None
