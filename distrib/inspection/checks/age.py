"""The image is not so old that its software must be full of known holes.

The newest of what an installation or an update touches says when the image was made. What the list
states (``dc:date:created``) can only be held against it.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from distrib.inspection.checks.subject import Finding, Outcome, Subject, line
from distrib.inspection.readers.tree import NotReadable, Tree
from distrib.inspection.sandbox import ToolFailed

_TOUCHED = (
    "/etc",
    "/etc/passwd",
    "/boot",
    "/var/lib/dpkg/status",
    "/var/lib/rpm",
    "/lib/apk/db/installed",
    "/",
)
_SKEW = timedelta(days=1)


class Age:
    """``age``."""

    name = "age"

    async def look(self, subject: Subject) -> Finding:
        facts = subject.facts
        oldest = facts.now - timedelta(seconds=facts.max_age_s)
        if facts.created is not None and facts.created < oldest:
            return Finding(Outcome.FAIL, f"stated to be made on {facts.created:%Y-%m-%d}")
        unread = [f"{part.name}: {part.why}" for part in subject.parts if part.tree is None]
        trees = [part.tree for part in subject.parts if part.tree is not None]
        found = [time for tree in trees for time in await _times(tree)]
        past = [time for time in found if time <= facts.now + _SKEW]
        if unread or not past:
            return Finding(Outcome.NOT_INSPECTED, line(unread or ["no file system with times"]))
        newest = max(past)
        outcome = Outcome.FAIL if newest < oldest else Outcome.PASS
        return Finding(outcome, f"last changed on {newest:%Y-%m-%d}")


async def _times(tree: Tree) -> list[datetime]:
    times = []
    for path in _TOUCHED:
        try:
            entry = await tree.find(path)
            time = await tree.reader.changed_at(entry) if entry is not None else None
        except (NotReadable, ToolFailed):
            continue
        if time is not None:
            times.append(time)
    return times
