"""XFS, by xfs_db: read-only, by inode numbers, so that no name becomes a command.

xfs_db wants the file system at the start of a file, so a partition is cut out into one (sparse).
It reads what is on disk: one whose log has to be replayed first is not read (xfs_logprint says).
The bytes of a file are read by us, from the blocks that xfs_db names.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from distrib.inspection.cut import cut_out
from distrib.inspection.readers.tree import FILE_MAX_BYTES, Entry, Kind, NotReadable
from distrib.inspection.sandbox import Limits, Sandbox, fd_path

_ENTRY = re.compile(rb"\d+ +(\d+) +(\w+) +0x[0-9a-f]{8} +(\d+) ")
_EXTENT = re.compile(
    rb"^data offset (\d+) startblock \d+ \((\d+)/(\d+)\) count (\d+) flag (\d)$", re.MULTILINE
)
_FIELD = re.compile(rb"^([\w.]+) = (.*)$", re.MULTILINE)
_KINDS = {b"regular": Kind.FILE, b"directory": Kind.FOLDER, b"symlink": Kind.LINK}
_GOOD = b" (good)\n"
_GROUP_BITS_MAX = 31
_FORMAT_LOCAL = b"1"


class XfsReader:
    """One XFS file system, at the start of the file behind ``descriptor``."""

    folds_case = False

    def __init__(self, descriptor: int, folder: Path, sandbox: Sandbox) -> None:
        self._folder = folder
        self._descriptor = descriptor
        self._sandbox = sandbox
        self._super: dict[bytes, bytes] = {}

    async def check(self) -> None:
        """Raises NotReadable where what is on disk is not what a kernel would show."""
        self._super = await self._fields("sb 0")
        if self._number(self._super, b"rblocks"):
            raise NotReadable("it has a realtime device")
        if not (logstart := self._number(self._super, b"logstart")):
            raise NotReadable("it has its log on another device")
        group_bits = self._number(self._super, b"agblklog")
        block_bytes = self._number(self._super, b"blocksize")
        if group_bits > _GROUP_BITS_MAX:
            raise NotReadable("its superblock is damaged")
        group, block = logstart >> group_bits, logstart & ((1 << group_bits) - 1)
        log = await asyncio.to_thread(
            cut_out,
            self._descriptor,
            (group * self._number(self._super, b"agblocks") + block) * block_bytes,
            self._number(self._super, b"logblocks") * block_bytes,
            folder=self._folder,
            # xfs_logprint opens it for writing, and writes nothing; this is a copy.
            mode=0o666,
        )
        with log:
            ran = await self._sandbox.run(
                ["xfs_logprint", "-t", "-f", fd_path(log.fileno())],
                fds=(log.fileno(),),
                limits=Limits(file_bytes=0),
            )
        if ran.status != 0 or b"state: <CLEAN>" not in ran.stdout:
            raise NotReadable("its log has not been replayed, or cannot be read")

    async def root(self) -> Entry:
        return Entry("/", Kind.FOLDER, str(self._number(self._super, b"rootino")))

    async def entries(self, folder: Entry) -> Sequence[Entry]:
        told = await self._ask(f"inode {folder.key}", "ls")
        entries: list[Entry] = []
        position = 0
        while position < len(told):
            found = _ENTRY.match(told, position)
            if found is None:
                raise NotReadable("a folder of it cannot be read")
            # The length says where a name ends, whatever is in it.
            end = found.end() + int(found[3])
            if not told.startswith(_GOOD, end):
                raise NotReadable("a folder of it is damaged")
            position = end + len(_GOOD)
            name = told[found.end() : end].decode(errors="surrogateescape")
            if name not in {".", ".."}:
                entries.append(Entry(name, _KINDS.get(found[2], Kind.OTHER), found[1].decode()))
        return entries

    async def content(self, file: Entry) -> bytes:
        fields = await self._fields(f"inode {file.key}")
        size_bytes = self._number(fields, b"core.size")
        return await self._blocks(file.key, size_bytes)

    async def target(self, link: Entry) -> str:
        fields = await self._fields(f"inode {link.key}")
        if fields.get(b"core.format", b"").split()[:1] != [_FORMAT_LOCAL]:
            raise NotReadable("a link that is longer than is read")
        return fields.get(b"u3.symlink", b"").strip(b'"').decode(errors="surrogateescape")

    async def changed_at(self, entry: Entry) -> datetime | None:
        fields = await self._fields(f"inode {entry.key}")
        text = fields.get(b"core.mtime.sec", b"").decode(errors="replace")
        try:
            return datetime.strptime(text, "%a %b %d %H:%M:%S %Y").replace(tzinfo=UTC)
        except ValueError:
            return None

    async def _blocks(self, inode: str, size_bytes: int) -> bytes:
        if size_bytes > FILE_MAX_BYTES:
            raise NotReadable(f"a file of {size_bytes} bytes")
        told = await self._ask(f"inode {inode}", "bmap")
        block_bytes = self._number(self._super, b"blocksize")
        group_blocks = self._number(self._super, b"agblocks")
        content = bytearray(size_bytes)
        for found in _EXTENT.finditer(told):
            offset, group, block, count, unwritten = (int(word) for word in found.groups())
            start = offset * block_bytes
            length = min(count * block_bytes, size_bytes - start)
            if unwritten or length <= 0:
                continue
            place = (group * group_blocks + block) * block_bytes
            data = os.pread(self._descriptor, length, place)
            if len(data) != length:
                raise NotReadable("a file lies past the end of it")
            content[start : start + length] = data
        return bytes(content)

    async def _fields(self, place: str) -> dict[bytes, bytes]:
        told = await self._ask(place, "print")
        return {found[1]: found[2] for found in _FIELD.finditer(told)}

    def _number(self, fields: dict[bytes, bytes], name: bytes) -> int:
        text = fields.get(name, b"")
        if not text.isdigit() or len(text) > 18:
            raise NotReadable("xfs_db told something that cannot be read")
        return int(text)

    async def _ask(self, *commands: str) -> bytes:
        words = [word for command in commands for word in ("-c", command)]
        ran = await self._sandbox.run(
            ["xfs_db", "-r", "-f", *words, fd_path(self._descriptor)],
            fds=(self._descriptor,),
            limits=Limits(file_bytes=0),
        )
        said = [line for line in ran.stderr.splitlines() if line]
        if ran.status != 0 or said:
            raise NotReadable(ran.told() if ran.status else said[-1][:100])
        return ran.stdout
