"""ext2, ext3 and ext4, by debugfs: read-only, by inode numbers, so that no name becomes a command.

debugfs reads the file system as it is on disk. One whose journal has to be replayed first would
look otherwise once it is mounted, so that one is not read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from distrib.inspection.disk import Region
from distrib.inspection.readers.tree import FILE_MAX_BYTES, Entry, Kind, NotReadable
from distrib.inspection.sandbox import Limits, Sandbox, fd_path

_ROOT_INODE = "2"
_LINE = re.compile(rb"^/(\d+)/([0-7]{6})/\d+/\d+/(.*)/(\d*)/$", re.DOTALL)
_RECORD = re.compile(rb"^/\d+/[0-7]{6}/\d+/\d+/", re.MULTILINE)
_FAST_LINK = re.compile(rb'^Fast link dest: "(.*)"$', re.MULTILINE)
_CHANGED = re.compile(rb"^ ?mtime: 0x([0-9a-f]{8})(?::([0-9a-f]{8}))?", re.MULTILINE)
_KINDS = {0o04: Kind.FOLDER, 0o10: Kind.FILE, 0o12: Kind.LINK}
_LINK_MAX_BYTES = 4096


class ExtReader:
    """One ext file system in a disk."""

    folds_case = False

    def __init__(self, descriptor: int, region: Region, sandbox: Sandbox) -> None:
        self._descriptor = descriptor
        self._device = f"{fd_path(descriptor)}?offset={region.offset}"
        self._sandbox = sandbox

    async def root(self) -> Entry:
        return Entry("/", Kind.FOLDER, _ROOT_INODE)

    async def check(self) -> None:
        """Raises NotReadable where what is on disk is not what a kernel would show."""
        told = await self._ask("stats -h")
        found = re.search(rb"^Filesystem features:(.*)$", told, re.MULTILINE)
        if found is None:
            raise NotReadable("debugfs cannot open it")
        if b"needs_recovery" in found[1].split():
            raise NotReadable("its journal has not been replayed")

    async def entries(self, folder: Entry) -> Sequence[Entry]:
        told = await self._ask(f"ls -p <{folder.key}>")
        # A name may hold line ends: a record goes up to where the next one begins.
        starts = [found.start() for found in _RECORD.finditer(told)]
        entries = []
        for start, end in zip(starts, [*starts[1:], len(told)], strict=True):
            found = _LINE.match(told[start:end].rstrip(b"\n"))
            if found is None:
                raise NotReadable("debugfs told something that cannot be read")
            name = found[3].decode(errors="surrogateescape")
            if name not in {".", ".."}:
                kind = _KINDS.get(int(found[2], 8) >> 12, Kind.OTHER)
                entries.append(Entry(name, kind, found[1].decode(), int(found[4] or b"0")))
        if not starts:
            raise NotReadable("debugfs lists no folder there")
        return entries

    async def content(self, file: Entry) -> bytes:
        told = await self._ask(f"cat <{file.key}>", most_bytes=FILE_MAX_BYTES)
        if len(told) != file.size_bytes:
            raise NotReadable(f"{len(told)} of {file.size_bytes} bytes can be read")
        return told

    async def target(self, link: Entry) -> str:
        if link.size_bytes > _LINK_MAX_BYTES:
            raise NotReadable("a link that is longer than may be")
        fast = _FAST_LINK.search(await self._ask(f"stat <{link.key}>"))
        target = fast[1] if fast else await self._ask(f"cat <{link.key}>")
        return target.rstrip(b"\0").decode(errors="surrogateescape")

    async def changed_at(self, entry: Entry) -> datetime | None:
        found = _CHANGED.search(await self._ask(f"stat <{entry.key}>"))
        if found is None:
            return None
        # The two low bits of the second word carry the time past 2038 (ext4's inode, i_mtime_extra)
        seconds = int.from_bytes(bytes.fromhex(found[1].decode()), "big", signed=True)
        seconds += (int(found[2] or b"0", 16) & 3) << 32
        return datetime.fromtimestamp(seconds, UTC)

    async def _ask(self, request: str, *, most_bytes: int = 4 << 20) -> bytes:
        ran = await self._sandbox.run(
            ["debugfs", "-R", request, self._device],
            fds=(self._descriptor,),
            limits=Limits(file_bytes=0, output_bytes=most_bytes + 1),
        )
        # debugfs ends with status 0 whatever became of the request; what went wrong it says.
        said = [line for line in ran.stderr.splitlines() if line and line[:8] != "debugfs "]
        if ran.status != 0 or said:
            raise NotReadable(ran.told() if ran.status else said[-1].rpartition(": ")[2][:100])
        return ran.stdout
