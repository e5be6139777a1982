"""Events for handlers: written in the transaction of the change that they tell of, delivered later.

What is in the table was committed with the change, and what was rolled back was never said.
``distrib.events`` delivers. The names of types and variables are those of vmcatcher, whose handlers
the field has (docs/formats/events.md).
"""

from __future__ import annotations

import unicodedata
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from distrib.db.intake_models import Event
from distrib.db.models import Image, ImageState
from distrib.db.references import image_name, is_listed
from distrib.trust.imagelist import version_key

VALUE_MAX_BYTES = 4096
_NAMES_AT_ONCE = 500
RUN_VARIABLE = "VMCATCHER_EVENT_UUID_SESSION"
INFOHASH_VARIABLE = "DISTRIB_EVENT_INFOHASH"
LIST_SHA512_VARIABLE = "DISTRIB_EVENT_LIST_SHA512"
REPLACED_BY_VARIABLE = "DISTRIB_EVENT_REPLACED_BY"
REPLAYED_FOR_VARIABLE = "DISTRIB_EVENT_REPLAYED_FOR"

# Controls, formats (also the marks that reverse the reading order), surrogates, line separators.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


class EventType(StrEnum):
    """The types of vmcatcher."""

    PROCESS_PREFIX = "ProcessPrefix"
    PROCESS_POSTFIX = "ProcessPostfix"
    IMAGE_NEW = "SubscriptionImageNew"
    AVAILABLE_PREFIX = "AvailablePrefix"
    AVAILABLE_POSTFIX = "AvailablePostfix"
    EXPIRE_PREFIX = "ExpirePrefix"
    EXPIRE_POSTFIX = "ExpirePostfix"


_run: ContextVar[str | None] = ContextVar("events-run", default=None)

_IMAGE_LIFE = (
    EventType.AVAILABLE_PREFIX,
    EventType.AVAILABLE_POSTFIX,
    EventType.EXPIRE_PREFIX,
    EventType.EXPIRE_POSTFIX,
)
_OF_ENTRY = {
    "dc:description": "VMCATCHER_EVENT_DC_DESCRIPTION",
    "dc:title": "VMCATCHER_EVENT_DC_TITLE",
    "hv:hypervisor": "VMCATCHER_EVENT_HV_HYPERVISOR",
    "hv:uri": "VMCATCHER_EVENT_HV_URI",
    "hv:format": "VMCATCHER_EVENT_HV_FORMAT",
    "sl:arch": "VMCATCHER_EVENT_SL_ARCH",
    "sl:comments": "VMCATCHER_EVENT_SL_COMMENTS",
    "sl:os": "VMCATCHER_EVENT_SL_OS",
    "sl:osversion": "VMCATCHER_EVENT_SL_OSVERSION",
    "ad:mpuri": "VMCATCHER_EVENT_AD_MPURI",
    "ad:vo": "VMCATCHER_EVENT_VO",
}


@contextmanager
def one_run() -> Iterator[None]:
    """What is emitted in the block (a poll, the making of a site list) has one UUID in common.

    Also in threads that the block starts by ``asyncio.to_thread``, which carries the context.
    """
    before = _run.set(str(uuid.uuid4()))
    try:
        yield
    finally:
        _run.reset(before)


def emit(
    session: Session,
    at: datetime,
    type: EventType,
    *,
    image: Image | None = None,
    list: str | None = None,
    only_for: str | None = None,
) -> Event:
    """Queue an event in the caller's transaction; ``list`` is a list's UUID, ``only_for`` the one
    handler that is told.

    The caller holds the lock on the image's row, so events of an image have the order of its
    changes. Outside of ``one_run`` it is a run of its own.
    """
    environment = {"VMCATCHER_EVENT_TYPE": str(type), RUN_VARIABLE: _run.get() or str(uuid.uuid4())}
    subject = list or ""
    if only_for:
        environment[REPLAYED_FOR_VARIABLE] = only_for
    if list:
        environment["VMCATCHER_EVENT_IL_DC_IDENTIFIER"] = list
    if image is not None:
        subject = image_name(image)
        environment |= _image_environment(image)
        if type in _IMAGE_LIFE and (newer := _newer_listed(session, image, at)) is not None:
            environment[REPLACED_BY_VARIABLE] = newer
    event = Event(at=at, type=str(type), subject=subject, environment=cleaned(environment))
    session.add(event)
    session.flush()
    return event


def begin_expiry(session: Session, at: datetime, image: Image) -> None:
    """``ExpirePrefix``, unless handlers were told already that the image version has gone."""
    name = image_name(image)
    last = last_of(session, {name}).get(name)
    if last not in {EventType.EXPIRE_PREFIX, EventType.EXPIRE_POSTFIX}:
        emit(session, at, EventType.EXPIRE_PREFIX, image=image)


def last_of(session: Session, images: Collection[str]) -> dict[str, EventType]:
    """The newest ``Available…`` or ``Expire…`` of each of those ``UUID@VERSION`` that has one."""
    found: dict[str, EventType] = {}
    names = sorted(images)
    for first in range(0, len(names), _NAMES_AT_ONCE):
        newest = (
            select(func.max(Event.id))
            .where(
                Event.subject.in_(names[first : first + _NAMES_AT_ONCE]),
                Event.type.in_([str(one) for one in _IMAGE_LIFE]),
            )
            .group_by(Event.subject)
        )
        rows = session.execute(select(Event.subject, Event.type).where(Event.id.in_(newest)))
        found |= {subject: EventType(type_) for subject, type_ in rows}
    return found


def cleaned(environment: Mapping[str, str]) -> dict[str, Any]:
    """Values fit for an environment: one line, bounded, empty ones left out."""
    values = {name: clean(value) for name, value in environment.items()}
    return {name: value for name, value in values.items() if value}


def clean(value: str) -> str:
    """``value`` as one line of UTF-8 of at most ``VALUE_MAX_BYTES``.

    Runs of white space and of what a terminal, a shell's ``read`` or ``execve`` would act on become
    one space. Quotes and ``$(...)`` stay: they are text, and nobody here gives them to a shell.
    """
    # Bounded first: a title of megabytes costs no more than a long one.
    bounded = value[: 4 * VALUE_MAX_BYTES]
    spaced = "".join(" " if unicodedata.category(char) in _UNSAFE else char for char in bounded)
    line = " ".join(spaced.split())
    return line.encode()[:VALUE_MAX_BYTES].decode(errors="ignore")


def _image_environment(image: Image) -> dict[str, str]:
    entry = image.entry
    texts = {
        variable: str(entry[key])
        for key, variable in _OF_ENTRY.items()
        if isinstance(entry.get(key), str | int | float)
    }
    endorsed_format = texts.get("VMCATCHER_EVENT_HV_FORMAT", "")
    if image.sha512 and image.sha512 != image.endorsed_sha512:
        # The file that handlers get was converted, and they open it by this.
        texts["VMCATCHER_EVENT_HV_FORMAT"] = "RAW"
    return texts | {
        "VMCATCHER_EVENT_DC_IDENTIFIER": image.identifier,
        "VMCATCHER_EVENT_DC_TITLE": image.title,
        "VMCATCHER_EVENT_HV_VERSION": image.version,
        "VMCATCHER_EVENT_HV_SIZE": str(image.endorsed_size_bytes),
        "VMCATCHER_EVENT_SL_CHECKSUM_SHA512": image.endorsed_sha512,
        "VMCATCHER_EVENT_IL_DC_IDENTIFIER": image.list_identifier,
        INFOHASH_VARIABLE: image.infohash or "",
        "DISTRIB_EVENT_RAW_SHA512": image.sha512 or "",
        "DISTRIB_EVENT_RAW_SIZE": str(image.size_bytes or ""),
        "DISTRIB_EVENT_ENDORSED_FORMAT": endorsed_format,
        "DISTRIB_EVENT_STATE": image.state,
        "DISTRIB_EVENT_REASON": image.reason,
        "DISTRIB_EVENT_ENDORSER_DN": image.endorser_dn,
        "DISTRIB_EVENT_AUDIENCE": _audience(image),
        "DISTRIB_EVENT_PROPOSED_BY": image.proposed_by or "",
        LIST_SHA512_VARIABLE: image.list_sha512,
    }


def _audience(image: Image) -> str:
    """Names of users hold neither colons nor spaces: ``users:`` is nobody's name."""
    users = (image.audience or {}).get("users")
    return "all" if users is None else "users:" + ",".join(users)


def _newer_listed(session: Session, image: Image, at: datetime) -> str | None:
    """The newest approved version above ``image``: what handlers hold under the UUID instead."""
    query = select(Image.version).where(
        Image.identifier == image.identifier,
        Image.state == ImageState.APPROVED,
        Image.version != image.version,
        is_listed(at),
    )
    above = [
        version
        for version in session.scalars(query)
        if version_key(version) > version_key(image.version)
    ]
    return max(above, key=version_key, default=None)
