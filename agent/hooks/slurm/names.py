"""Names and values that Slurm's side knows (docs/formats/hooks.md). Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from agent.hooks.gridengine.names import image_id

SCHEDULER: Final = "slurm"

COMMENT_KEY: Final = "vm_name"
"""``sbatch --comment=vm_name=IMAGE``."""

FEATURE: Final = "img_"
MARKER: Final = b"# distrib: the job itself follows\n"
REQUEUE, REFUSED = 99, 100
"""Exit statuses of a job whose guest could not be run: tried again; refused everywhere."""

AVAILABLE_MOST: Final = 200
"""Features of ours that a node keeps as available: a line of slurmctld's state for each."""

_HERE = frozenset({"ready", "leased"})
_NAMES = re.compile(r"[\s,;]+")


def image_of(comment: str) -> str | None:
    """The image that a job's comment names; None when it names none.

    ``submit.lua`` reads a comment in the same way."""
    for part in _NAMES.split(comment):
        key, equals, value = part.partition("=")
        if key == COMMENT_KEY and equals:
            return value
    return None


def feature(reference: str) -> str:
    """What stands for ``UUID`` or ``UUID@VERSION``: features hold letters, digits and ``_``."""
    return FEATURE + image_id(reference)


def features_of(status: Mapping[str, Any] | None) -> list[str]:
    """The features for an answer to ``status``; without one, and where no lease is given, none."""
    if status is None or not status["leasable"]:
        return []
    found = []
    for image in status["report"]["images"]:
        if image["state"] in _HERE:
            if image["active"]:
                found.append(feature(image["identifier"]))
            found.append(feature(f"{image['identifier']}@{image['version']}"))
    return found


def merged(
    available: Iterable[str], active: Iterable[str], ours: Iterable[str]
) -> tuple[list[str], list[str]]:
    """Available and active features of a node that holds ``ours``; those of others stay.

    One that is held no more stays available: a job that prefers it is refused by slurmctld where no
    node knows it."""
    others = [one for one in active if not one.startswith(FEATURE)]
    wanted = list(dict.fromkeys(ours))
    known = [one for one in available if one not in wanted and one.startswith(FEATURE)]
    room = max(0, AVAILABLE_MOST - len(wanted))
    kept = [one for one in available if not one.startswith(FEATURE)]
    return kept + known[len(known) - min(room, len(known)) :] + wanted, others + wanted


def job_of(script: bytes) -> bytes:
    """The user's own script, out of what submit.lua made of it."""
    _, marker, own = script.partition(MARKER)
    return own if marker else script
