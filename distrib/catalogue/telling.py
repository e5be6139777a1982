"""What a new site list means to event handlers: which images are there now, and which are gone.

Handlers of the field know one version of a UUID. So a version that leaves the list while a newer
one is on it is told as replaced (``DISTRIB_EVENT_REPLACED_BY``), and when the newest leaves, what
is left is told as available again.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Session

from distrib.db.models import Image
from distrib.db.outbox import EventType, emit, last_of
from distrib.trust.imagelist import version_key


def tell_published(
    session: Session, *, before: frozenset[str], after: frozenset[str], at: datetime
) -> None:
    """Emit in the transaction of the list; both sets are of ``UUID@VERSION``.

    An ``Available`` or ``Expire`` that was begun (``Prefix``) by the change itself is completed.
    """
    gone, come = sorted(before - after), sorted(after - before)
    if not gone and not come:
        return
    come += _left(gone, come, after)
    begun = last_of(session, {*gone, *come})
    emit(session, at, EventType.PROCESS_PREFIX)
    for names, prefix, postfix in (
        (gone, EventType.EXPIRE_PREFIX, EventType.EXPIRE_POSTFIX),
        (come, EventType.AVAILABLE_PREFIX, EventType.AVAILABLE_POSTFIX),
    ):
        for name in names:
            identifier, _at, version = name.partition("@")
            image = session.get(Image, (identifier, version))
            if image is None:
                continue
            if begun.get(name) != prefix:
                emit(session, at, prefix, image=image)
            emit(session, at, postfix, image=image)
    emit(session, at, EventType.PROCESS_POSTFIX)


def _left(gone: list[str], come: list[str], after: frozenset[str]) -> list[str]:
    """Of each UUID whose newest version has gone, the newest that is left."""
    arrived = {name.partition("@")[0] for name in come}
    left: dict[str, str] = {}
    for name in sorted(after, key=_version):
        left[name.partition("@")[0]] = name
    lost = {name.partition("@")[0]: name for name in sorted(gone, key=_version)}
    return sorted(
        left[identifier]
        for identifier, name in lost.items()
        if identifier in left
        and identifier not in arrived
        and _version(left[identifier]) < _version(name)
    )


def _version(name: str) -> tuple[tuple[int, int, str], ...]:
    return version_key(name.partition("@")[2])
