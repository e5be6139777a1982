"""A volume group as the store uses it: the tools, and what the last report said.

A report takes tens of milliseconds, and the cache asks often. What is asked for is from a report
that is at most ``FRESH_S`` old, with what we have changed since: of the making and removing of a
snapshot it is known what they change, after anything else there is a new report.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Final

import structlog

from agent.cache.lvm_inventory import Inventory
from agent.cache.lvmtools import LvmTools
from distrib.errors import StorageFailed

log = structlog.get_logger(__name__)

FRESH_S: Final = 2.0


class VolumeGroup:
    """Safe to call from several threads; changes are the callers' to put in order."""

    def __init__(self, tools: LvmTools) -> None:
        self._tools = tools
        self._seen: Inventory | None = None
        self._fresh_until = 0.0
        self._changes = 0
        """Odd while one is being made."""
        self._looking = Lock()

    @property
    def name(self) -> str:
        return self._tools.vg

    def look(self) -> Inventory:
        """What there is now. Raises StorageFailed."""
        began_s, changes = time.monotonic(), self._changes
        found = self._tools.inventory()
        if changes == self._changes and changes % 2 == 0:
            self._seen, self._fresh_until = found, began_s + FRESH_S
        elif self._seen is None:
            self._seen = found
        return found

    def recent(self) -> Inventory:
        """What there was not long ago. Raises StorageFailed only when nothing was ever seen."""
        seen = self._fresh()
        if seen is not None:
            return seen
        with self._looking:
            return self._fresh() or self._look_again()

    def _fresh(self) -> Inventory | None:
        return self._seen if time.monotonic() < self._fresh_until else None

    def _look_again(self) -> Inventory:
        seen = self._seen
        try:
            return self.look()
        except StorageFailed as error:
            if seen is None:
                raise
            # The cache's accounts must go on; whatever changes something meets the fault itself.
            log.warning("lvm-report-failed", why=error.message, hint=error.hint)
            self._fresh_until = time.monotonic() + FRESH_S
            return seen

    def run(
        self,
        tool: str,
        *arguments: str,
        issue_discards: bool = False,
        then: Callable[[Inventory], Inventory] | None = None,
    ) -> None:
        """Run a tool that changes something; ``then``: what it changes, where that is known.
        Raises NoSpace, StorageFailed or ToolMissing."""
        self._changes += 1
        known = False
        try:
            self._tools.run(tool, *arguments, issue_discards=issue_discards)
            if then is not None and self._seen is not None:
                self._seen = then(self._seen)
                known = True
        finally:
            self._changes += 1
            if not known:
                self._fresh_until = 0.0

    def create(
        self, *arguments: str, on: str, then: Callable[[Inventory], Inventory] | None = None
    ) -> None:
        """lvcreate, on the group, or on the origin of a snapshot."""
        self.run("lvcreate", *arguments, on, *self._tools.allocate, then=then)

    def extend(self, name: str, by_bytes: int) -> None:
        arguments = ["--size", f"+{by_bytes}b", self.lv(name)]
        self.run("lvextend", *arguments, *self._tools.allocate)

    def activate(self, *names: str) -> None:
        paths = map(self.lv, names)
        self.run("lvchange", "--activate", "y", "--ignoreactivationskip", *paths)

    def lv(self, name: str) -> str:
        """As the tools want it."""
        return f"{self._tools.vg}/{name}"

    def device(self, name: str) -> Path:
        """As everybody else wants it."""
        return Path("/dev", self._tools.vg, name)
