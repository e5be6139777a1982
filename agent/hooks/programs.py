"""Files that a batch system calls: written where they are not as they should be, and taken away."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from agent.cache import durable
from distrib.errors import Conflict, StorageFailed

_OURS: Final = re.compile(
    r"\A#![^\n]*\n# [^\n]*\bdistrib\b(?!-)|^[^#\n]*-I -m agent\b", re.MULTILINE
)
"""Every file of ours says so in its second line, or calls the agent by its module; another one of
that name is the site's."""


def put(files: Mapping[Path, str], *, mode: int = 0o755, dry_run: bool) -> list[Path]:
    """Write what is not there as it should be; which files. Raises StorageFailed, and Conflict
    where the site has one of its own of that name; then nothing is written."""
    there = {file: _present(file) for file in files}
    changed = [file for file, text in files.items() if there[file] != text]
    for file in changed:
        if (text := there[file]) is not None and not _is_ours(text):
            raise Conflict(f"{file} is the site's own", hint="name another --directory")
    for file in changed if not dry_run else ():
        try:
            file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            durable.replace(file, files[file].encode())
            file.chmod(mode)
        except OSError as error:
            raise _failed(file, error) from None
    return changed


def take_away(files: Iterable[Path], *, dry_run: bool) -> list[Path]:
    """Remove those that are ours; which files. Raises StorageFailed."""
    ours = [file for file in files if _is_ours(_present(file) or "")]
    for file in ours if not dry_run else ():
        try:
            file.unlink()
        except OSError as error:
            raise _failed(file, error) from None
    return ours


def _is_ours(text: str) -> bool:
    return _OURS.search(text) is not None


def _present(file: Path) -> str | None:
    try:
        return file.read_text("utf-8", "replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _failed(file, error) from None


def _failed(file: Path, error: OSError) -> StorageFailed:
    return StorageFailed(f"{file}: {error.strerror}", hint="as root?", path=str(file))
