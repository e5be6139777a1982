"""The run log: what image ran on this node, for which job and user, from when to when.

JSON lines, one file a day (``run-2026-03-01.jsonl``, UTC). A launch leaves two lines, ``start``
before its guest exists and ``end`` after it is gone, so that a crash between them shows. Lines are
never changed; whole files go, and not before 90 days.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from agent.launch.hypervisor import Usage
from distrib.errors import ConfigInvalid, StorageFailed

MIN_KEEP_DAYS = 90
"""Sites answer for what ran on their nodes at least this long."""


@dataclass(frozen=True)
class Run:
    """A launch as the log names it. ``sha512`` is of the raw image; ``job`` the batch system's id
    or the lease; ``host`` the node."""

    lease: str
    image: str
    version: str
    sha512: str
    job: str
    user: str
    host: str


class RunLog:
    """The log in one directory. Calls block shortly (an fsync): use a worker thread."""

    def __init__(self, directory: Path, *, keep_days: int = MIN_KEEP_DAYS) -> None:
        if keep_days < MIN_KEEP_DAYS:
            raise ConfigInvalid(
                f"the run log is kept for {keep_days} days",
                hint=f"at least {MIN_KEEP_DAYS}",
            )
        self._directory = directory
        self._keep = timedelta(days=keep_days)

    def started(self, run: Run, *, now: datetime) -> None:
        """Write the ``start`` line. It is on disk when this returns, or StorageFailed."""
        self._append(now, {"event": "start", "start": _stamp(now), **vars(run)})

    def ended(
        self,
        run: Run,
        *,
        start: datetime,
        now: datetime,
        exit_status: int | None,
        error: str | None = None,
        usage: Usage | None = None,
    ) -> None:
        """Write the ``end`` line; ``exit_status`` is None when there was none, ``error`` then the
        error's code; ``usage``: what the guest took."""
        self._append(
            now,
            {
                "event": "end",
                "start": _stamp(start),
                "end": _stamp(now),
                "exit": exit_status,
                "error": error,
                "wall_s": round((now - start).total_seconds(), 3),
                **(vars(usage) if usage else {}),
                **vars(run),
            },
        )

    def lines(self, *, since: datetime | None = None) -> Iterator[dict[str, Any]]:
        """All lines, or those of the days from ``since`` on, oldest first. A line that a power cut
        tore is left out."""
        first = date.min if since is None else since.astimezone(UTC).date()
        for day, path in self._files():
            if day < first:
                continue
            for line in path.read_bytes().splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if isinstance(entry, dict):
                    yield entry

    def expire(self, *, now: datetime) -> tuple[Path, ...]:
        """Remove the files whose last line is older than the log is kept; returns them."""
        gone = []
        for day, path in self._files():
            # The file's day ends a day after it begins.
            if datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(1) + self._keep < now:
                path.unlink()
                gone.append(path)
        return tuple(gone)

    def _append(self, now: datetime, entry: dict[str, Any]) -> None:
        day = now.astimezone(UTC).date()
        path = self._directory / f"run-{day.isoformat()}.jsonl"
        line = json.dumps({"v": 1, **entry}, ensure_ascii=True).encode() + b"\n"
        try:
            self._directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                size = os.fstat(fd).st_size
                if size and os.pread(fd, 1, size - 1) != b"\n":
                    # A torn line stays alone; it must not take the next one with it.
                    line = b"\n" + line
                if os.write(fd, line) != len(line):
                    raise OSError("short write")
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise StorageFailed(
                f"the run log cannot be written: {error}", path=str(path)
            ) from error

    def _files(self) -> list[tuple[date, Path]]:
        files = []
        for path in self._directory.glob("run-*.jsonl"):
            try:
                files.append((date.fromisoformat(path.stem.removeprefix("run-")), path))
            except ValueError:
                continue
        return sorted(files)


def _stamp(when: datetime) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
