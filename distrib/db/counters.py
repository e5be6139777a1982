"""Numbers that only rise: site-list versions, rollout numbers, changes of the catalogue."""

from __future__ import annotations

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from distrib.db.models import Counter

SITE_LIST_VERSION = "site-list-version"
CATALOGUE_CHANGES = "catalogue-changes"
CATALOGUE_PUBLISHED = "catalogue-published"
LIST_ACCEPTANCES = "list-acceptances"
PROPOSALS = "proposals"
ROLLOUT_NUMBER = "rollout-number"


def value_of(session: Session, name: str) -> int:
    """The counter; 0 before its first rise."""
    counter = session.get(Counter, name)
    return 0 if counter is None else counter.value


def rise(session: Session, name: str, *, at_least: int = 0) -> int:
    """One more than before, and not less than ``at_least`` (as unix time); the new value."""
    if session.get_bind().dialect.name == "postgresql":
        # Two that begin the same counter at once; on SQLite there is one writer at a time.
        session.execute(insert(Counter).values(name=name, value=0).on_conflict_do_nothing())
    counter = session.get(Counter, name, with_for_update=True)
    if counter is None:
        counter = Counter(name=name, value=0)
        session.add(counter)
    counter.value = max(counter.value + 1, at_least)
    return counter.value


def set_to(session: Session, name: str, value: int) -> None:
    """Bring the counter up to ``value``; it never falls."""
    if value > value_of(session, name):
        rise(session, name, at_least=value)
