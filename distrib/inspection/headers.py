"""What a disk image says of itself in its first and last bytes, read by us and bounded.

This decides whether a converter is started at all: a format that names other files (a backing
file, a data file, a parent, extents) is refused here, before qemu-img sees it. Sources: QEMU's
docs/interop/qcow2.txt; VMware's "Virtual Disk Format 5.0"; VirtualBox's VDICore.h; Microsoft's
"Virtual Hard Disk Image Format Specification". Pure: ``read(offset, count)`` gives the bytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

Read = Callable[[int, int], bytes]

SECTOR_BYTES = 512
HEAD_BYTES = 4096
_DESCRIPTOR_MAX_BYTES = 64 << 10


class DiskFormat(StrEnum):
    """Formats of a disk, by the names of qemu-img."""

    RAW = "raw"
    QCOW2 = "qcow2"
    VMDK = "vmdk"
    VDI = "vdi"
    VHD = "vpc"


class Packing(StrEnum):
    """What a disk may be packed in."""

    GZIP = "gzip"
    BZIP2 = "bzip2"
    XZ = "xz"
    ZSTD = "zstd"
    OVA = "ova"


class HeaderRefused(Exception):
    """The header is damaged, or asks for what no image from outside may ask for."""


@dataclass(frozen=True)
class DiskHeader:
    """What the header promises; ``virtual_bytes`` is the size of the disk inside."""

    format: DiskFormat
    virtual_bytes: int


_PACKINGS = {
    b"\x1f\x8b": Packing.GZIP,
    b"BZh": Packing.BZIP2,
    b"\xfd7zXZ\x00": Packing.XZ,
    b"\x28\xb5\x2f\xfd": Packing.ZSTD,
}
_TAR_MAGIC, _TAR_OFFSET = b"ustar", 257
_VDI_MAGIC, _VDI_OFFSET = b"\x7f\x10\xda\xbe", 64
_VHD_MAGIC = b"conectix"
# Formats that are known by their magic and cannot be taken in.
_OTHERS = {
    b"# Disk DescriptorFile": "a vmdk that only names other files",
    b"COWD": "a vmdk of ESX with its extents elsewhere",
    b"vhdxfile": "vhdx",
    b"PK\x03\x04": "a zip archive",
    b"QED\x00": "qed",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"LUKS\xba\xbe": "a disk encrypted by LUKS",
    b"WithoutFreSpacExt": "parallels",
    b"WithoutFreeSpace": "parallels",
}


def packing_of(read: Read) -> Packing | None:
    """How a file is packed, by its magic; None: not at all."""
    head = read(0, HEAD_BYTES)
    for magic, packing in _PACKINGS.items():
        if head.startswith(magic):
            return packing
    return Packing.OVA if head[_TAR_OFFSET:].startswith(_TAR_MAGIC) else None


def format_of(read: Read, size_bytes: int) -> DiskFormat:
    """The disk format by magic; whatever has none is raw. Raises HeaderRefused."""
    head = read(0, HEAD_BYTES)
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            raise HeaderRefused(f"it is {name}")
    if head.startswith(b"QFI\xfb"):
        return DiskFormat.QCOW2
    if head.startswith(b"KDMV"):
        return DiskFormat.VMDK
    if head[_VDI_OFFSET:].startswith(_VDI_MAGIC):
        return DiskFormat.VDI
    # The footer is the only sign of a VHD of fixed size; the others repeat it at the start.
    tail = read(max(0, size_bytes - SECTOR_BYTES), SECTOR_BYTES)
    if _VHD_MAGIC in (head[:8], tail[:8]):
        return DiskFormat.VHD
    return DiskFormat.RAW


def read_header(disk_format: DiskFormat, read: Read, size_bytes: int) -> DiskHeader:
    """Check the header of a disk. Raises HeaderRefused for what may not be converted."""
    reader = {
        DiskFormat.QCOW2: _qcow2,
        DiskFormat.VMDK: _vmdk,
        DiskFormat.VDI: _vdi,
        DiskFormat.VHD: _vhd,
    }.get(disk_format)
    if reader is None:
        return DiskHeader(DiskFormat.RAW, size_bytes)
    try:
        virtual_bytes = reader(read, size_bytes)
    except struct.error:
        raise HeaderRefused(f"it ends within its {disk_format} header") from None
    if virtual_bytes <= 0:
        raise HeaderRefused("the disk in it has no bytes")
    return DiskHeader(disk_format, virtual_bytes)


# qcow2 --------------------------------------------------------------------------------------------

_QCOW2_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_QCOW2_V3 = struct.Struct(">QQQII")
_BIT_DIRTY, _BIT_CORRUPT, _BIT_DATA_FILE, _BIT_COMPRESSION, _BIT_EXTENDED_L2 = 1, 2, 4, 8, 16
_QCOW2_USABLE_BITS = _BIT_DIRTY | _BIT_COMPRESSION | _BIT_EXTENDED_L2
_EXTENSION_END, _EXTENSION_BACKING, _EXTENSION_DATA = 0, 0xE2792ACA, 0x44415441
_EXTENSIONS_MAX = 64


def _qcow2(read: Read, _size_bytes: int) -> int:
    fields = _QCOW2_V2.unpack(read(0, _QCOW2_V2.size))
    version, backing_offset, cluster_bits, size, encryption = (fields[i] for i in (1, 2, 4, 5, 6))
    if version not in {2, 3}:
        raise HeaderRefused(f"qcow2 of version {version} is not read")
    if backing_offset != 0 or fields[3] != 0:
        raise HeaderRefused("it has a backing file")
    if encryption != 0:
        raise HeaderRefused("it is encrypted")
    if not 9 <= cluster_bits <= 21:
        raise HeaderRefused(f"its clusters of 2^{cluster_bits} bytes are none of qcow2")
    header_bytes = _QCOW2_V2.size
    if version == 3:
        incompatible, _, _, _, header_bytes = _QCOW2_V3.unpack(read(_QCOW2_V2.size, _QCOW2_V3.size))
        if incompatible & _BIT_DATA_FILE:
            raise HeaderRefused("its data is in another file")
        if incompatible & _BIT_CORRUPT:
            raise HeaderRefused("it is marked as corrupt")
        if incompatible & ~_QCOW2_USABLE_BITS:
            raise HeaderRefused(f"its incompatible features {incompatible:#x} are not known")
    _qcow2_extensions(read, header_bytes, end=1 << cluster_bits)
    return int(size)


def _qcow2_extensions(read: Read, offset: int, *, end: int) -> None:
    for _ in range(_EXTENSIONS_MAX):
        if offset + 8 > end:
            return
        kind, length = struct.unpack(">II", read(offset, 8))
        if kind == _EXTENSION_END:
            return
        if kind == _EXTENSION_BACKING:
            raise HeaderRefused("it has a backing file")
        if kind == _EXTENSION_DATA:
            raise HeaderRefused("its data is in another file")
        offset += 8 + (length + 7) // 8 * 8
    raise HeaderRefused(f"it has more than {_EXTENSIONS_MAX} header extensions")


# vmdk ---------------------------------------------------------------------------------------------

_VMDK = struct.Struct("<4sIIQQQQIQQQ")
_VMDK_ONE_FILE = frozenset({"monolithicsparse", "streamoptimized"})
_EXTENT = re.compile(r"^\s*(RW|RDONLY|NOACCESS)\b", re.IGNORECASE)
_SPARSE_EXTENT = re.compile(r"^\s*(RW|RDONLY)\s+\d+\s+SPARSE\s+\"[^\"]*\"", re.IGNORECASE)


def _vmdk(read: Read, size_bytes: int) -> int:
    fields = _VMDK.unpack(read(0, _VMDK.size))
    version, capacity, descriptor_at, descriptor_sectors = (fields[i] for i in (1, 3, 5, 6))
    if not 1 <= version <= 3:
        raise HeaderRefused(f"a vmdk of version {version} is not read")
    # QEMU reads a header without capacity as a list of files to open.
    if capacity == 0:
        raise HeaderRefused("its header has no capacity: its extents may be other files")
    if descriptor_at == 0 or descriptor_sectors == 0:
        raise HeaderRefused("it has no descriptor: it is a part of a disk")
    offset, length = descriptor_at * SECTOR_BYTES, descriptor_sectors * SECTOR_BYTES
    if offset + length > size_bytes or length > _DESCRIPTOR_MAX_BYTES:
        raise HeaderRefused("its descriptor is longer than may be")
    _vmdk_descriptor(read(offset, length))
    return int(capacity) * SECTOR_BYTES


def _vmdk_descriptor(data: bytes) -> None:
    lines = data.split(b"\0", 1)[0].decode("latin-1").splitlines()
    halves = (line.partition("=") for line in lines)
    settings = {key.strip().lower(): value.strip().strip('"') for key, _, value in halves}
    if settings.get("createtype", "").lower() not in _VMDK_ONE_FILE:
        raise HeaderRefused("its descriptor is not that of a disk in one file")
    if settings.get("parentcid", "ffffffff").lower() != "ffffffff":
        raise HeaderRefused("it has a parent: it holds differences only")
    if any("parentfilenamehint" in line.lower() for line in lines):
        raise HeaderRefused("it has a parent: it holds differences only")
    extents = [line for line in lines if _EXTENT.match(line)]
    if len(extents) != 1 or not _SPARSE_EXTENT.match(extents[0]):
        raise HeaderRefused(f"its descriptor names {len(extents)} extents, or one in another file")


# vdi, vhd -----------------------------------------------------------------------------------------

_VDI_DYNAMIC, _VDI_FIXED = 1, 2
_VHD_FIXED, _VHD_DYNAMIC, _VHD_DIFFERENCING = 2, 3, 4


def _vdi(read: Read, _size_bytes: int) -> int:
    (kind,) = struct.unpack("<I", read(76, 4))
    if kind not in {_VDI_DYNAMIC, _VDI_FIXED}:
        raise HeaderRefused("it is a vdi of another type: it may hold differences only")
    (size,) = struct.unpack("<Q", read(368, 8))
    # UUIDs of the disk that it is linked to, and of its parent.
    if any(read(424, 16)) or any(read(440, 16)):
        raise HeaderRefused("it has a parent: it holds differences only")
    return int(size)


def _vhd(read: Read, size_bytes: int) -> int:
    head = read(0, SECTOR_BYTES)
    footer = head if head.startswith(_VHD_MAGIC) else read(size_bytes - SECTOR_BYTES, SECTOR_BYTES)
    (size,) = struct.unpack(">Q", footer[48:56])
    (kind,) = struct.unpack(">I", footer[60:64])
    if kind == _VHD_DIFFERENCING:
        raise HeaderRefused("it has a parent: it holds differences only")
    if kind not in {_VHD_FIXED, _VHD_DYNAMIC}:
        raise HeaderRefused(f"a vhd of type {kind} is not read")
    return int(size)
