"""What is wrong on a node, as `distrib-agent doctor` tells it: each with the command to run.

A store that knows faults of its own has two functions beside it, which work without a daemon and
without the store's object (making one finishes what was interrupted):

* ``examine(settings) -> tuple[Finding, ...]`` looks, and changes nothing;
* ``leftovers`` and ``sweep`` of ``Sweeping``, for `distrib-agent gc`, run inside the daemon.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal, Protocol, runtime_checkable


@dataclass(frozen=True)
class Finding:
    """One fault. ``code`` is stable (docs/formats/doctor.md); ``subject`` what it is about, a
    path, device, volume group or tool; ``command`` what to run, as it is typed.

    A ``warning`` will be one day what an ``error`` is now: images do not come, or jobs do not get
    them."""

    code: str
    subject: str
    text: str
    command: str
    level: Literal["error", "warning"] = "error"

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


Examine = Callable[[], tuple[Finding, ...]]
"""Looks at one thing, changes nothing, raises nothing, and is done within seconds."""


@runtime_checkable
class Sweeping(Protocol):
    """A store that can leave things in the kernel or on the disk which no volume and no instance
    owns: loop devices, mappings, mounts."""

    def leftovers(self) -> tuple[str, ...]:
        """What is there and belongs to nothing, by the names that an operator knows."""
        ...

    def sweep(self) -> tuple[str, ...]:
        """Remove it; returns what was removed. What cannot be removed stays and is logged."""
        ...
