"""Console logs of launches that failed, kept for a while."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

MAX_FILES = 200


class Consoles:
    """The directory ``consoles/`` of the agent's state: ``<lease>.log`` each, the newest 200, for
    ``keep_days``. Calls block shortly: use a worker thread."""

    def __init__(self, directory: Path, *, keep_days: float) -> None:
        self._directory = directory
        self._keep = timedelta(days=keep_days)

    def keep(self, lease: str, console: Path) -> Path | None:
        """Copy a console log; where to, or None: nothing is kept, or it cannot be."""
        if not self._keep:
            return None
        kept = self._directory / f"{lease}.log"
        try:
            self._directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            shutil.copyfile(console, kept)
            kept.chmod(0o640)
        except OSError as error:
            kept.unlink(missing_ok=True)
            log.warning("console-not-kept", lease=lease, why=str(error))
            return None
        return kept

    def expire(self, now: datetime) -> None:
        """Remove what is too old or too many."""
        files = [(path.stat().st_mtime, path) for path in self._directory.glob("l-*.log")]
        oldest_s = (now - self._keep).timestamp()
        for index, (changed_s, path) in enumerate(sorted(files, reverse=True)):
            if index >= MAX_FILES or changed_s < oldest_s:
                path.unlink(missing_ok=True)
