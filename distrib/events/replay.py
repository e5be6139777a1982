"""What is approved now, told once more to one handler: to one that was added later, or lost it.

The events are ordinary ones that name the handler (``REPLAYED_FOR_VARIABLE``); others never see
them. They are written while no other change is (the rows of the images are locked), so a later
``Expire`` of an image comes after them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from distrib.db.audit import record
from distrib.db.models import Image
from distrib.db.outbox import EventType, emit, last_of, one_run
from distrib.db.references import image_name, is_listed
from distrib.errors import Conflict, NotFound
from distrib.events.settings import HandlerSettings
from distrib.trust.imagelist import version_key

_TOLD = (EventType.AVAILABLE_PREFIX, EventType.AVAILABLE_POSTFIX)


@dataclass(frozen=True)
class Replayed:
    """Events ``first`` to ``last`` tell ``handler`` of ``images`` (``UUID@VERSION``)."""

    handler: str
    images: tuple[str, ...]
    first: int
    last: int


def replay(
    session: Session, name: str, handlers: Iterable[HandlerSettings], *, at: datetime, actor: str
) -> Replayed:
    """Queue the ``Available…`` events of what is on the site list for the handler ``name``.

    Raises NotFound; Conflict for a handler whose ``types`` leave them out.
    """
    handler = next((one for one in handlers if one.name == name), None)
    if handler is None:
        raise NotFound(
            f"no event handler {name[:64]!r}",
            hint="events.handlers in the controller's settings names them",
            handler=name[:64],
        )
    if handler.types and not set(_TOLD) & set(handler.types):
        raise Conflict(
            f"{name} is told neither of {' nor of '.join(_TOLD)}",
            hint=f"add one to its types (events.handlers): it has {', '.join(handler.types)}",
            handler=name,
        )
    images = _to_tell(session, handler, at)
    with one_run():
        numbers = [emit(session, at, EventType.PROCESS_PREFIX, only_for=name).id]
        for image in images:
            numbers += [emit(session, at, one, image=image, only_for=name).id for one in _TOLD]
        numbers.append(emit(session, at, EventType.PROCESS_POSTFIX, only_for=name).id)
    record(
        session,
        at=at,
        actor=actor,
        action="events-replayed",
        subject=name,
        images=[image_name(image) for image in images],
    )
    return Replayed(name, tuple(image_name(image) for image in images), numbers[0], numbers[-1])


def _to_tell(session: Session, handler: HandlerSettings, at: datetime) -> list[Image]:
    """Older versions of a UUID first. What is not told as available yet, or just going, is left
    out: its own events are to come."""
    query = select(Image).where(is_listed(at)).order_by(Image.identifier, Image.version)
    found = sorted(
        session.scalars(query.with_for_update()),
        key=lambda image: (image.identifier, version_key(image.version)),
    )
    last = last_of(session, {image_name(image) for image in found})
    told = [
        image
        for image in found
        # None: longer ago than events are kept.
        if last.get(image_name(image)) in {None, EventType.AVAILABLE_POSTFIX}
    ]
    if handler.versions:
        return told
    return list({image.identifier: image for image in told}.values())
