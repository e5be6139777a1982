"""The one disk in an OVA: a tar of an OVF description and its disks (DMTF DSP0243, section 5.3).

The archive is only read, in bounded steps. Nothing of it is unpacked: a name in it leads nowhere.
Headers are those of POSIX ustar, with the sizes of pax and GNU tar.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from distrib.inspection.headers import HeaderRefused, Read

_BLOCK_BYTES = 512
_MEMBERS_MAX = 64
_EXTENSION_MAX_BYTES = 64 << 10
_REGULAR = frozenset({b"0", b"\0", b"7"})
_DIRECTORY = b"5"
_PAX, _PAX_GLOBAL, _LONG_NAME = b"x", b"g", b"L"
_DISKS = (".vmdk", ".vhd", ".vhdx", ".vdi", ".qcow2", ".img", ".raw")
_PACKED = (".gz", ".bz2", ".xz", ".zst")


@dataclass(frozen=True)
class Member:
    """A regular file of the archive: where its bytes are."""

    name: str
    offset: int
    size_bytes: int


def disk_of(read: Read, size_bytes: int) -> Member:
    """The disk. Raises HeaderRefused where the archive has not just one, or is damaged."""
    members = list(_members(read, size_bytes))
    descriptions = [one for one in members if one.name.lower().endswith(".ovf")]
    if len(descriptions) != 1:
        raise HeaderRefused(f"it is a tar with {len(descriptions)} OVF descriptions, not an OVA")
    disks = [one for one in members if _is_disk(one.name.lower())]
    if len(disks) != 1:
        raise HeaderRefused(f"it is an OVA with {len(disks)} disks: one can be taken in")
    return disks[0]


def _is_disk(name: str) -> bool:
    for ending in _PACKED:
        name = name.removesuffix(ending)
    return name.endswith(_DISKS)


def _members(read: Read, size_bytes: int) -> Iterator[Member]:
    offset, told_bytes, told_name = 0, None, ""
    for _ in range(_MEMBERS_MAX):
        header = read(offset, _BLOCK_BYTES)
        if len(header) < _BLOCK_BYTES or not any(header):
            return
        _check_sum(header)
        kind, length = header[156:157], _number(header[124:136])
        start = offset + _BLOCK_BYTES
        if kind in {_PAX, _PAX_GLOBAL, _LONG_NAME}:
            extension = _extension(read, start, length)
            if kind == _PAX:
                told_bytes, told_name = _pax(extension, told_name)
            elif kind == _LONG_NAME:
                told_name = extension.rstrip(b"\0").decode(errors="replace")
        elif kind in _REGULAR:
            length = length if told_bytes is None else told_bytes
            name = told_name or header[:100].rstrip(b"\0").decode(errors="replace")
            if length > size_bytes - start:
                raise HeaderRefused("it is an OVA that ends within one of its files")
            yield Member(name, start, length)
            told_bytes, told_name = None, ""
        elif kind != _DIRECTORY:
            raise HeaderRefused("it is an OVA with links or devices in it")
        offset = start + -(-length // _BLOCK_BYTES) * _BLOCK_BYTES
    raise HeaderRefused(f"it is an OVA of more than {_MEMBERS_MAX} files")


def _extension(read: Read, start: int, length: int) -> bytes:
    if length > _EXTENSION_MAX_BYTES:
        raise HeaderRefused("it is an OVA with a header that is longer than may be")
    return read(start, length)


def _pax(records: bytes, name: str) -> tuple[int | None, str]:
    size_bytes: int | None = None
    for line in records.split(b"\n"):
        key, _, value = line.partition(b" ")[2].partition(b"=")
        if key == b"size" and value.isdigit() and len(value) < 20:
            size_bytes = int(value)
        elif key == b"path":
            name = value.decode(errors="replace")
        elif key.startswith(b"GNU.sparse"):
            raise HeaderRefused("it is an OVA with sparse files in it")
    return size_bytes, name


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU: base 256
        value = int.from_bytes(field[1:], "big")
    else:
        text = field.strip(b" \0")
        if text and not all(48 <= digit < 56 for digit in text):
            raise HeaderRefused("it is an OVA with a damaged header")
        value = int(text or b"0", 8)
    if value >= 1 << 62:
        raise HeaderRefused("it is an OVA with a damaged header")
    return value


def _check_sum(header: bytes) -> None:
    if _number(header[148:156]) != sum(header[:148]) + 8 * 32 + sum(header[156:]):
        raise HeaderRefused("it is an OVA with a damaged header")
