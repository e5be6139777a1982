"""FAT, by mtools. Names that mtools would take for a pattern are not asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from distrib.inspection.disk import Region
from distrib.inspection.readers.tree import FILE_MAX_BYTES, Entry, Kind, NotReadable
from distrib.inspection.sandbox import Limits, Ran, Sandbox, fd_path

_ASKABLE = re.compile(r"[A-Za-z0-9 ._+@~()#$%&'{}^!=,;-]{1,255}")
_SHORT = re.compile(
    r"^(?P<base>.{8}) (?P<extension>.{3}) (?:\s*(?P<size>\d+)|<DIR>\s*)"
    r" (?P<day>\d{4}-\d\d-\d\d)  (?P<time>[ \d]\d:\d\d) (?: (?P<long>.*))?$"
)


class FatReader:
    """One FAT file system in a disk; the key of an entry is its path."""

    folds_case = True

    def __init__(self, descriptor: int, region: Region, sandbox: Sandbox) -> None:
        self._descriptor = descriptor
        self._drive = f"{fd_path(descriptor)}@@{region.offset}"
        self._sandbox = sandbox
        self._changed: dict[str, datetime] = {}

    async def check(self) -> None:
        """Raises NotReadable where mtools cannot open it."""
        await self.entries(await self.root())

    async def root(self) -> Entry:
        return Entry("/", Kind.FOLDER, "")

    async def entries(self, folder: Entry) -> Sequence[Entry]:
        ran = await self._run(["mdir", "-a", "-i", self._drive, f"::{folder.key}/"])
        if ran.status != 0:
            if "File not found" in ran.stderr and not folder.key:
                return ()  # an empty root
            raise NotReadable(ran.told())
        entries = []
        for line in ran.stdout.decode(errors="replace").splitlines():
            found = _SHORT.match(line)
            if found is None:
                continue
            short = found["base"].strip()
            if found["extension"].strip():
                short += f".{found['extension'].strip()}"
            name = found["long"] or short
            if name in {".", ".."}:
                continue
            key = f"{folder.key}/{name}"
            kind = Kind.FOLDER if found["size"] is None else Kind.FILE
            entries.append(Entry(name, kind, key, int(found["size"] or 0)))
            self._note_time(key, f"{found['day']} {found['time'].strip()}")
        return entries

    async def content(self, file: Entry) -> bytes:
        ran = await self._run(["mtype", "-i", self._drive, f"::{file.key}"])
        if ran.status != 0 or len(ran.stdout) != file.size_bytes:
            raise NotReadable(ran.told())
        return ran.stdout

    async def target(self, link: Entry) -> str:
        raise NotReadable("FAT has no links")

    async def changed_at(self, entry: Entry) -> datetime | None:
        return self._changed.get(entry.key)

    def _note_time(self, key: str, text: str) -> None:
        try:
            self._changed[key] = datetime.strptime(text, "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
        except ValueError:
            self._changed.pop(key, None)

    async def _run(self, argv: list[str]) -> Ran:
        name = argv[-1].removeprefix("::")
        if not all(_ASKABLE.fullmatch(part) for part in name.split("/") if part):
            raise NotReadable("a name that mtools would take for a pattern")
        limits = Limits(file_bytes=0, output_bytes=FILE_MAX_BYTES)
        return await self._sandbox.run(argv, fds=(self._descriptor,), limits=limits)
