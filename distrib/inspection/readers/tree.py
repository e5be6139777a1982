"""Paths in a file system that nobody mounts: lookup, links and bounds, over any reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

LINKS_MAX = 20
FILE_MAX_BYTES = 4 << 20
NAMES_MAX = 10_000


class NotReadable(Exception):
    """The reader cannot say for sure what is there: what stands on it is ``not-inspected``."""


class Kind(StrEnum):
    """What a name leads to."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "link"
    OTHER = "other"


@dataclass(frozen=True)
class Entry:
    """A name in a folder. ``key`` is the reader's own word for it (an inode number, a path)."""

    name: str
    kind: Kind
    key: str
    size_bytes: int = 0


class Reader(Protocol):
    """Reads one file system. Every method raises NotReadable, and ToolFailed at a limit."""

    folds_case: bool

    async def root(self) -> Entry:
        """The topmost folder."""
        ...

    async def entries(self, folder: Entry) -> Sequence[Entry]:
        """What is in a folder, without ``.`` and ``..``."""
        ...

    async def content(self, file: Entry) -> bytes:
        """All of a file of at most FILE_MAX_BYTES."""
        ...

    async def target(self, link: Entry) -> str:
        """Where a symbolic link leads."""
        ...

    async def changed_at(self, entry: Entry) -> datetime | None:
        """When it was modified; None: not known."""
        ...


class Tree:
    """A file system by paths; links are followed within it, as chroot(2) would."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._folders: dict[str, Sequence[Entry]] = {}

    async def find(self, path: str) -> Entry | None:
        """What the path leads to; None where there is nothing.

        Raises NotReadable for a link that leads to nothing here: in a guest something may be
        mounted there.
        """
        return await self._walk(path)

    async def entries(self, path: str) -> Sequence[Entry]:
        """What is in a folder; nothing where it is none."""
        folder = await self.find(path)
        if folder is None or folder.kind is not Kind.FOLDER:
            return ()
        return await self._list(folder)

    async def content(self, path: str) -> bytes | None:
        """All of a file; None where there is none."""
        found = await self.find(path)
        if found is None or found.kind is not Kind.FILE:
            return None
        if found.size_bytes > FILE_MAX_BYTES:
            raise NotReadable(f"{path} has {found.size_bytes} bytes")
        return await self.reader.content(found)

    async def _walk(self, path: str) -> Entry | None:
        links_left = LINKS_MAX
        here = [await self.reader.root()]
        parts = [part for part in path.split("/") if part not in {"", "."}]
        of_links = 0
        while parts:
            part, within_link, of_links = parts.pop(0), of_links > 0, max(0, of_links - 1)
            if part == "..":
                here = here[:-1] or here
                continue
            found = None
            if here[-1].kind is Kind.FOLDER:
                found = self._named(part, await self._list(here[-1]))
            if found is None:
                if within_link:
                    raise NotReadable(f"{path} is a link that leads to nothing here")
                return None
            if found.kind is not Kind.LINK:
                here.append(found)
                continue
            if links_left == 0:
                raise NotReadable(f"{path}: more than {LINKS_MAX} links")
            links_left -= 1
            target = await self.reader.target(found)
            words = [word for word in target.split("/") if word not in {"", "."}]
            parts, of_links = words + parts, of_links + len(words)
            here = here[:1] if target.startswith("/") else here
        return here[-1]

    def _named(self, name: str, entries: Sequence[Entry]) -> Entry | None:
        if self.reader.folds_case:
            name = name.casefold()
            return next((one for one in entries if one.name.casefold() == name), None)
        return next((one for one in entries if one.name == name), None)

    async def _list(self, folder: Entry) -> Sequence[Entry]:
        if folder.key not in self._folders:
            entries = await self.reader.entries(folder)
            if len(entries) > NAMES_MAX:
                raise NotReadable(f"more than {NAMES_MAX} names in one folder")
            self._folders[folder.key] = entries
        return self._folders[folder.key]
