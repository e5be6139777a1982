"""What a check looks at, and what it says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from distrib.inspection.disk import Layout
from distrib.inspection.readers.tree import NotReadable, Tree
from distrib.inspection.sandbox import Sandbox, ToolFailed
from distrib.printable import printable

_NAMED_MAX = 5
_TEXT_MAX_CHARS = 500


class Outcome(StrEnum):
    """``not-inspected`` is never a pass."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    NOT_INSPECTED = "not-inspected"


@dataclass(frozen=True)
class Finding:
    """What a check says; ``text`` is one line for people, fit for a terminal."""

    outcome: Outcome
    text: str


@dataclass(frozen=True)
class Part:
    """A region of the disk that may hold files; ``tree`` None: nobody here reads it, and why."""

    name: str
    tree: Tree | None
    why: str = ""


@dataclass(frozen=True)
class Facts:
    """What the list states of the image, and what the site demands."""

    image: str
    title: str
    now: datetime
    max_age_s: float
    created: datetime | None = None


@dataclass(frozen=True)
class Subject:
    """The image: the open file, the layout of its disk, its file systems, the facts."""

    descriptor: int
    layout: Layout
    parts: Sequence[Part]
    facts: Facts
    sandbox: Sandbox


class Check(Protocol):
    """One question to an image."""

    @property
    def name(self) -> str:
        """By which results are stored and settings name it."""
        ...

    async def look(self, subject: Subject) -> Finding:
        """The answer. Raises NotReadable, ToolFailed: then it is ``not-inspected``."""
        ...


Look = Callable[[Tree], Awaitable[list[str] | None]]
"""The faults of one file system; None: what is asked for could not be in it."""


async def in_all_parts(subject: Subject, look: Look, *, nothing: str, clean: str) -> Finding:
    """One finding from all file systems: a fault anywhere fails, one that is not read is no pass.

    ``nothing`` is said where no file system is one that ``look`` is about, ``clean`` where all are
    without fault.
    """
    faults: list[str] = []
    unread: list[str] = []
    looked = False
    for part in subject.parts:
        if part.tree is None:
            unread.append(f"{part.name}: {part.why}")
            continue
        try:
            found = await look(part.tree)
        except (NotReadable, ToolFailed) as error:
            unread.append(f"{part.name}: {error}")
            continue
        looked = looked or found is not None
        faults += [f"{part.name}: {fault}" for fault in found or ()]
    if faults:
        return Finding(Outcome.FAIL, line(faults))
    if unread:
        return Finding(Outcome.NOT_INSPECTED, line(unread))
    if not looked:
        return Finding(Outcome.NOT_INSPECTED, nothing)
    return Finding(Outcome.PASS, clean)


def line(texts: Sequence[str]) -> str:
    """The first few of ``texts`` as one line without anything that a terminal acts on."""
    more = len(texts) - _NAMED_MAX
    told = "; ".join(printable(text) for text in texts[:_NAMED_MAX])
    return told[:_TEXT_MAX_CHARS] + (f"; and {more} more" if more > 0 else "")
