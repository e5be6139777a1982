"""What subscriptions sent and was refused: the last few messages of each, to look into."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from distrib.catalogue.store import named_faults, write_atomically

KEPT = 8


@dataclass(frozen=True)
class Evidence:
    """``<folder>/<subscription>/<sha512>.smime``, the newest ``KEPT`` of each subscription."""

    folder: Path

    def keep(self, subscription_id: int, sha512: str, message: bytes) -> None:
        """Keep a refused message, and drop the oldest. Raises StorageFailed, NoSpace."""
        place = self.folder / str(subscription_id)
        file = place / f"{sha512}.smime"
        with named_faults(place):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            if file.exists():
                return
            oldest_first = sorted(place.glob("*.smime"), key=lambda one: one.stat().st_mtime_ns)
            # Room is made first: what is sent again and again must not fill the disk.
            for old in oldest_first[: max(0, len(oldest_first) - KEPT + 1)]:
                old.unlink(missing_ok=True)
        write_atomically(file, message, mode=0o400)

    def forget(self, subscription_id: int) -> None:
        """Drop all of a subscription."""
        shutil.rmtree(self.folder / str(subscription_id), ignore_errors=True)
