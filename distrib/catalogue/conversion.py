"""From the endorsed file to the raw disk that nodes hold (docs/decisions/0017).

At most one packing (gzip, bzip2, xz, zstd, or the tar of an OVA), then one disk format. Whatever
reads the file runs in the sandbox; what it writes is bounded before it starts. The raw disk must
not look like yet another format, because whoever probed it later would take it for that.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrib.catalogue.formats import Stated, require_agreement
from distrib.catalogue.ova import disk_of
from distrib.catalogue.store import named_faults
from distrib.errors import ImageError, NoSpace
from distrib.inspection.headers import (
    SECTOR_BYTES,
    DiskFormat,
    HeaderRefused,
    Packing,
    Read,
    format_of,
    packing_of,
    read_header,
)
from distrib.inspection.sandbox import Limits, Ran, Sandbox, ToolFailed, fd_path

UNPACKED_FILE = "image.unpacked"
RAW_PART_FILE = "image.raw.part"
# Room that stays free on the disk of the head, for its database and lists.
RESERVE_BYTES = 64 << 20
_UNPACKERS = {
    Packing.GZIP: ("gzip", "-dc"),
    Packing.BZIP2: ("bzip2", "-dc"),
    Packing.XZ: ("xz", "-dc"),
    Packing.ZSTD: ("zstd", "-dcq", "--no-sparse"),
}
_MEMORY_BYTES = 2 << 30
# How qemu-img and others name the file that they were given.
_FILE_OPTIONS = re.compile(r"'?(driver=[^' ]*|/proc/self/fd/\d+)'?")
_NO_SPACE = "No space left on device"


@dataclass(frozen=True)
class Disk:
    """A disk in a file: its format, and the range of bytes in which it is."""

    file: Path
    format: DiskFormat
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class Conversion:
    """``max_raw_bytes`` bounds the raw disk, ``tool_s`` each run of a tool."""

    sandbox: Sandbox
    max_raw_bytes: int
    tool_s: float

    async def to_raw(
        self,
        source: Path,
        *,
        stated: Stated,
        image: str,
        unchanged: Callable[[], Awaitable[None]],
    ) -> Path:
        """The raw disk as a file beside ``source``, which may be that file itself.

        ``unchanged`` is awaited after the last read of the source: it raises where the source is
        not what was checked any more. Raises ImageError, NoSpace, StorageFailed.
        """
        _open_to_tools(source)
        with _refusals(image), _reading(source) as (read, size_bytes):
            packing = packing_of(read)
        disk_file, offset = source, 0
        if packing is Packing.OVA:
            with _refusals(image), _reading(source) as (read, size_bytes):
                member = disk_of(read, size_bytes)
            offset, size_bytes = member.offset, member.size_bytes
        elif packing is not None:
            disk_file = await self._unpack(source, packing, image=image)
            await unchanged()
            size_bytes = disk_file.stat().st_size
        with _refusals(image), _reading(disk_file, offset) as (read, _):
            _check_not_packed(read)
            disk = Disk(disk_file, format_of(read, size_bytes), offset, size_bytes)
            virtual_bytes = read_header(disk.format, read, size_bytes).virtual_bytes
        require_agreement(stated, disk.format, packing, image=image)
        self._check_size(virtual_bytes, image)
        if disk.format is DiskFormat.RAW and disk_file == source and packing is None:
            return source
        if disk.format is DiskFormat.RAW and disk_file != source:
            return disk_file
        raw = await self._convert(disk, source.with_name(RAW_PART_FILE), image=image)
        if disk_file == source:
            await unchanged()
        else:
            disk_file.unlink()
        require_raw(raw, image=image)
        return raw

    async def _unpack(self, source: Path, packing: Packing, *, image: str) -> Path:
        target = source.with_name(UNPACKED_FILE)
        room_bytes = _free_bytes(target.parent)
        limit_bytes = min(self.max_raw_bytes, room_bytes)
        with named_faults(target), source.open("rb") as packed, target.open("wb") as file:
            file.truncate(0)
            with _tool_faults(image):
                ran = await self.sandbox.run(
                    _UNPACKERS[packing],
                    stdin=packed.fileno(),
                    stdout=file.fileno(),
                    limits=self._limits(limit_bytes),
                )
        if target.stat().st_size >= limit_bytes and ran.status != 0:
            if room_bytes < self.max_raw_bytes:
                raise _no_room(image, f"it unpacks to more than the {room_bytes} bytes free")
            raise _too_large(image, f"it unpacks to more than {self.max_raw_bytes} bytes")
        _require(ran, image)
        return target

    async def _convert(self, disk: Disk, target: Path, *, image: str) -> Path:
        with disk.file.open("rb") as file:
            told = await self._ask(disk, file.fileno(), ("info",), image=image)
            virtual_bytes = _checked_info(told, disk, image)
            self._check_size(virtual_bytes, image)
            told = await self._ask(disk, file.fileno(), ("measure", "-O", "raw"), image=image)
            needed, room_bytes = (
                int(told.get("required", virtual_bytes)),
                _free_bytes(target.parent),
            )
            if needed > room_bytes:
                raise _no_room(image, f"it converts to {needed} bytes, {room_bytes} are free")
            with named_faults(target), target.open("wb") as out:
                out.truncate(virtual_bytes)
                # The folder is ours alone: this is for the tool's user, by its descriptor.
                os.fchmod(out.fileno(), 0o666)
            with target.open("r+b") as out, _tool_faults(image):
                ran = await self.sandbox.run(
                    [
                        *("qemu-img", "convert", "-n", "--target-is-zero", "-O", "raw"),
                        *("--image-opts", _image_opts(disk, file.fileno())),
                        fd_path(out.fileno()),
                    ],
                    fds=(file.fileno(), out.fileno()),
                    limits=self._limits(virtual_bytes),
                )
        _require(ran, image)
        _close_to_tools(target, virtual_bytes, image)
        return target

    async def _ask(
        self, disk: Disk, descriptor: int, command: tuple[str, ...], *, image: str
    ) -> dict[str, Any]:
        argv = ["qemu-img", command[0], "--output=json", *command[1:]]
        with _tool_faults(image):
            ran = await self.sandbox.run(
                [*argv, "--image-opts", _image_opts(disk, descriptor)],
                fds=(descriptor,),
                limits=Limits(wall_s=self.tool_s, cpu_s=int(self.tool_s) + 1, file_bytes=0),
            )
        _require(ran, image)
        try:
            told = json.loads(ran.stdout)
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise ImageError(f"image {image}: qemu-img {command[0]} told nothing", image=image)
        return told

    def _limits(self, file_bytes: int) -> Limits:
        return Limits(
            wall_s=self.tool_s,
            cpu_s=int(self.tool_s) + 1,
            memory_bytes=_MEMORY_BYTES,
            file_bytes=file_bytes,
        )

    def _check_size(self, virtual_bytes: int, image: str) -> None:
        if virtual_bytes > self.max_raw_bytes:
            raise _too_large(
                image, f"its disk has {virtual_bytes} bytes, {self.max_raw_bytes} may be"
            )


def require_raw(file: Path, *, image: str) -> None:
    """Refuse a disk that begins (or ends) like another format. Raises ImageError."""
    with _refusals(image), _reading(file) as (read, size_bytes):
        _check_not_packed(read)
        if (found := format_of(read, size_bytes)) is not DiskFormat.RAW:
            raise HeaderRefused(f"the raw disk begins like {found}")


def _open_to_tools(file: Path) -> None:
    """In a folder that only we may enter: the tool's user gets at it by our descriptor alone."""
    with named_faults(file):
        file.parent.chmod(0o700)
        file.chmod(0o644)


def _close_to_tools(file: Path, size_bytes: int, image: str) -> None:
    with named_faults(file):
        file.chmod(0o600)
        if file.stat().st_size != size_bytes:
            raise _too_large(image, "its conversion changed its size")


def _image_opts(disk: Disk, descriptor: int) -> str:
    """Every layer is named, so that QEMU probes nothing."""
    file = fd_path(descriptor)
    if disk.offset == 0:
        return f"driver={disk.format},file.driver=file,file.locking=off,file.filename={file}"
    # QEMU takes whole sectors only; to them a tar fills up its members.
    size_bytes = -(-disk.size_bytes // SECTOR_BYTES) * SECTOR_BYTES
    return (
        f"driver={disk.format},file.driver=raw,file.offset={disk.offset},file.size={size_bytes},"
        f"file.file.driver=file,file.file.locking=off,file.file.filename={file}"
    )


def _checked_info(told: dict[str, Any], disk: Disk, image: str) -> int:
    """The virtual size. QEMU's own reading of the header must find no other file either."""
    specific = told.get("format-specific", {}).get("data", {})
    others = [key for key in ("backing-filename", "full-backing-filename") if told.get(key)]
    others += ["data-file"] if specific.get("data-file") else []
    others += ["extents"] if len(specific.get("extents", ())) > 1 else []
    if others or told.get("format") != str(disk.format) or told.get("encrypted"):
        raise ImageError(
            f"image {image}: qemu-img finds {', '.join(others) or 'another format'} in it",
            hint="an image must be one file, not encrypted",
            image=image,
        )
    return int(told.get("virtual-size", 0))


def _check_not_packed(read: Read) -> None:
    if (inner := packing_of(read)) is not None:
        raise HeaderRefused(f"it is packed twice: there is {inner} in it")


@contextmanager
def _reading(file: Path, offset: int = 0) -> Iterator[tuple[Read, int]]:
    with named_faults(file), file.open("rb") as stream:
        descriptor = stream.fileno()

        def read(start: int, count: int) -> bytes:
            return os.pread(descriptor, count, offset + start)

        yield read, os.fstat(descriptor).st_size


@contextmanager
def _refusals(image: str) -> Iterator[None]:
    try:
        yield
    except HeaderRefused as error:
        raise ImageError(
            f"image {image} cannot be taken in: {error}",
            hint="ask the endorser for one whole disk: raw, qcow2, vmdk, vdi, vhd or an OVA of one",
            image=image,
        ) from None


@contextmanager
def _tool_faults(image: str) -> Iterator[None]:
    try:
        yield
    except ToolFailed as error:
        raise ToolFailed(f"image {image}: {error.message}", hint=error.hint, image=image) from None


def _require(ran: Ran, image: str) -> None:
    if ran.status == 0:
        return
    if _NO_SPACE in ran.stderr:
        raise _no_room(image, f"{ran.tool} found no more space")
    told = _FILE_OPTIONS.sub("the file", ran.told())
    raise ToolFailed(f"image {image}: {told}", hint="the file is damaged, or hostile", image=image)


def _free_bytes(folder: Path) -> int:
    return max(0, shutil.disk_usage(folder).free - RESERVE_BYTES)


def _no_room(image: str, what: str) -> NoSpace:
    return NoSpace(f"image {image}: {what}", hint="make room on the head's disk", image=image)


def _too_large(image: str, what: str) -> ImageError:
    return ImageError(
        f"image {image} is too large: {what}", hint="setting intake.max_raw_bytes", image=image
    )


async def flush(file: Path) -> None:
    """To the disk, in a thread."""

    def now() -> None:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())

    with named_faults(file):
        await asyncio.to_thread(now)
