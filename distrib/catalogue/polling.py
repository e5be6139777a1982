"""One poll of a subscription: fetched, judged, followed; how it ended is kept with it.

A poll that fails changes nothing but that: what was accepted before stays. A server that says "not
modified" is answered from what is kept here: the same bytes are judged again, by today's clock,
CRLs and endorsers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import structlog
from sqlalchemy.orm import Session

from distrib.catalogue.acceptance import Acceptance, Accepted, Examined, claim_of
from distrib.catalogue.clock import Clock
from distrib.catalogue.endorsers import authorised_for
from distrib.catalogue.evidence import Evidence
from distrib.catalogue.fetching import Fetched, Fetcher, Origin
from distrib.catalogue.passwords import Passwords
from distrib.catalogue.store import ImageStore
from distrib.catalogue.subscriptions import check_unbound, found_subscription
from distrib.db.intake_models import Subscription, Take
from distrib.db.outbox import EventType, emit, one_run
from distrib.db.session import Database
from distrib.errors import DistribError, NotFound, TimedOut, TrustRefused
from distrib.trust.verify import AuthorisedEndorser

log = structlog.get_logger(__name__)

ACCEPTED, UNCHANGED = "accepted", "unchanged"
#: All of a poll; fetching has its own limit, below this one.
POLL_S = 300.0
_TEXT_MAX_CHARS = 1000
_REMARKS_MAX = 200


@dataclass(frozen=True)
class Ending:
    """How a poll ended, as the subscription keeps it. ``fresh``: what is here is the newest."""

    code: str
    fresh: bool
    text: str = ""
    exit_status: int = 0
    hint: str = ""
    reasons: tuple[dict[str, str], ...] = ()
    remarks: tuple[dict[str, str], ...] = ()

    @classmethod
    def of_error(cls, error: DistribError) -> Ending:
        """A poll that ended with ``error``."""
        reasons = error.reasons if isinstance(error, TrustRefused) else ()
        return cls(
            code=error.code,
            fresh=False,
            text=error.message[:_TEXT_MAX_CHARS],
            exit_status=int(error.exit_status),
            hint=error.hint,
            reasons=reasons,
        )

    @classmethod
    def of_list(cls, accepted: Accepted) -> Ending:
        """A poll that brought a list, new or known."""
        return cls(
            code=ACCEPTED if accepted.new else UNCHANGED,
            fresh=True,
            remarks=tuple(one.as_dict() for one in accepted.remarks[:_REMARKS_MAX]),
        )


class Poll:
    """Polls one subscription at a time; ``schedule`` says which, and when the next poll is due.

    ``next_in`` gives the time to the next poll after ``failures`` in a row.
    """

    def __init__(
        self,
        *,
        database: Database,
        store: ImageStore,
        acceptance: Acceptance,
        passwords: Passwords,
        evidence: Evidence,
        fetcher: Fetcher,
        clock: Clock,
        next_in: Callable[[Subscription, int], timedelta],
        limit_s: float = POLL_S,
    ) -> None:
        self._database = database
        self._store = store
        self._acceptance = acceptance
        self._passwords = passwords
        self._evidence = evidence
        self._fetcher = fetcher
        self._clock = clock
        self._next_in = next_in
        self._limit_s = limit_s

    async def run(self, subscription_id: int, *, actor: str) -> Subscription:
        """Poll now; the row says how it ended. Raises NotFound, and what the database says."""
        with one_run():
            return await self._run(subscription_id, actor)

    async def _run(self, subscription_id: int, actor: str) -> Subscription:
        row = await asyncio.to_thread(self._row, subscription_id)
        await asyncio.to_thread(self._begins, row)
        try:
            async with asyncio.timeout(self._limit_s):
                return await self._polled(row, actor)
        except TimeoutError:
            late = TimedOut(
                f"{row.url}: the poll took longer than {self._limit_s:g} s",
                hint="is the head busy, or its trust directory gone?",
            )
            ending = Ending.of_error(late)
        except DistribError as error:
            ending = Ending.of_error(error)
        except Exception as error:
            log.exception("poll-failed", subscription=row.id)
            ending = Ending.of_error(
                DistribError(f"{type(error).__name__}: {error}", hint="the log has the traceback")
            )
        return await asyncio.to_thread(self._note, subscription_id, ending)

    async def _polled(self, row: Subscription, actor: str) -> Subscription:
        known = await asyncio.to_thread(self._kept, row)
        origin = await asyncio.to_thread(self._origin, row)
        if known is None:
            origin = replace(origin, etag=None)
        fetched = await self._fetcher.fetch(origin)
        message = fetched.message if fetched.message is not None else known
        if message is None:
            raise NotFound(f"{row.url}: not modified, and nothing is kept here", hint="poll again")
        return await asyncio.to_thread(self._judge, row.id, message, fetched, actor)

    def _judge(
        self, subscription_id: int, message: bytes, fetched: Fetched, actor: str
    ) -> Subscription:
        trust, claim = self._acceptance.trust(), claim_of(message)
        with self._database.transaction() as session:
            row = found_subscription(session, subscription_id)
            examined = self._acceptance.examine(
                session,
                message,
                claim,
                trust,
                endorsers=_endorsers(session, row),
                identifier=row.identifier,
            )
            if examined.reasons:
                ending = _refused(examined)
                if not _told(row, ending):
                    self._acceptance.note_refusal(session, examined, actor=actor)
            else:
                ending = self._accept(session, row, examined, fetched, actor)
            self._ended(session, row, ending)
        if examined.reasons and fetched.message is not None:
            self._keep_refused(row, examined)
        return row

    def _accept(
        self, session: Session, row: Subscription, examined: Examined, fetched: Fetched, actor: str
    ) -> Ending:
        identifier = examined.require().identifier
        check_unbound(session, identifier, but=row.id)
        accepted = self._acceptance.accept(session, examined, take=Take(row.take), actor=actor)
        row.identifier = identifier
        row.etag, row.message_sha512 = fetched.etag, accepted.sha512
        return Ending.of_list(accepted)

    def _note(self, subscription_id: int, ending: Ending) -> Subscription:
        with self._database.transaction() as session:
            row = found_subscription(session, subscription_id)
            self._ended(session, row, ending)
            return row

    def _begins(self, row: Subscription) -> None:
        """A poll begins: the one place."""
        log.debug("poll-begins", subscription=row.id, url=row.url)
        with self._database.transaction() as session:
            emit(session, self._clock(), EventType.PROCESS_PREFIX, list=row.identifier)

    def _ended(self, session: Session, row: Subscription, ending: Ending) -> None:
        """A poll has ended: the one place, in the transaction of what it changed."""
        now = self._clock()
        row.failures = 0 if ending.fresh else row.failures + 1
        row.polled_at, row.next_at = now, now + self._next_in(row, row.failures)
        if ending.fresh:
            row.ok_at = now
        if (row.code, row.text) != (ending.code, ending.text) or ending.code == ACCEPTED:
            level = log.info if ending.fresh else log.warning
            level(
                "list-polled", subscription=row.id, url=row.url, code=ending.code, text=ending.text
            )
        emit(session, now, EventType.PROCESS_POSTFIX, list=row.identifier)
        row.code, row.text = ending.code, ending.text
        row.reasons = {
            "exit": ending.exit_status,
            "hint": ending.hint,
            "reasons": list(ending.reasons),
            "remarks": list(ending.remarks),
        }

    def _row(self, subscription_id: int) -> Subscription:
        with self._database.reading() as session:
            return found_subscription(session, subscription_id)

    def _kept(self, row: Subscription) -> bytes | None:
        """The message that was accepted last, if it is still here."""
        if row.message_sha512 is None:
            return None
        try:
            return self._store.list_file(row.message_sha512).read_bytes()
        except OSError:
            return None

    def _origin(self, row: Subscription) -> Origin:
        auth = None
        if row.username is not None:
            auth = (row.username, self._passwords.of(row.id))
        ca_file = Path(row.ca_file) if row.ca_file else None
        return Origin(row.url, auth=auth, ca_file=ca_file, etag=row.etag)

    def _keep_refused(self, row: Subscription, examined: Examined) -> None:
        try:
            self._evidence.keep(row.id, examined.verdict.message_sha512, examined.message)
        except DistribError as error:
            # What was found counts, with its evidence or without.
            log.warning(
                "evidence-not-kept", subscription=row.id, code=error.code, why=error.message
            )


def _endorsers(session: Session, row: Subscription) -> tuple[AuthorisedEndorser, ...]:
    """Until its list is known, a subscription believes its own endorser alone.

    Else a list of somebody who may sign another one could take this subscription's place.
    """
    if row.identifier is None:
        return (AuthorisedEndorser(row.dn, row.ca),)
    return authorised_for(session, row.identifier)


def _refused(examined: Examined) -> Ending:
    try:
        examined.require()
    except TrustRefused as error:
        return Ending.of_error(error)
    raise AssertionError("a list with reasons against it does not pass")


def _told(row: Subscription, ending: Ending) -> bool:
    """Whether the last poll ended just so: the audit log need not say it every hour."""
    return row.code == ending.code and row.reasons.get("reasons") == list(ending.reasons)
