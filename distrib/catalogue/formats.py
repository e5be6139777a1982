"""What a list says of an image's format, against what its bytes are (docs/decisions/0017).

``hv:format`` is a hint in nobody's spelling (``QCOW2``, ``vdi.gz``, absent). The bytes decide how a
file is packed and which disk is in it; where the list names a disk format, that must be the one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from distrib.errors import ImageError
from distrib.inspection.headers import DiskFormat, Packing

_DISKS = {
    "raw": DiskFormat.RAW,
    "img": DiskFormat.RAW,
    "dd": DiskFormat.RAW,
    "qcow2": DiskFormat.QCOW2,
    "qcow": DiskFormat.QCOW2,
    "vmdk": DiskFormat.VMDK,
    "vdi": DiskFormat.VDI,
    "vhd": DiskFormat.VHD,
    "vpc": DiskFormat.VHD,
}
_PACKINGS = {
    "gz": Packing.GZIP,
    "gzip": Packing.GZIP,
    "bz2": Packing.BZIP2,
    "bzip2": Packing.BZIP2,
    "xz": Packing.XZ,
    "zst": Packing.ZSTD,
    "zstd": Packing.ZSTD,
    "ova": Packing.OVA,
}
# Variants of vmdk and vhd, which the header says better.
_VARIANTS = frozenset({"streamoptimized", "monolithicsparse", "fixed", "dynamic", "image", "disk"})
_WORDS = re.compile(r"[\s.,;:+/()_-]+")


@dataclass(frozen=True)
class Stated:
    """A format as a list states it; None: it does not say."""

    text: str = ""
    disk: DiskFormat | None = None
    packing: Packing | None = None


def stated_format(text: str | None, *, image: str) -> Stated:
    """Read ``hv:format``. Raises ImageError for a format that cannot be taken in."""
    if text is None or not text.strip():
        return Stated()
    disk: DiskFormat | None = None
    packing: Packing | None = None
    for word in filter(None, _WORDS.split(text.strip().lower())):
        if word in _DISKS and disk in {None, _DISKS[word]}:
            disk = _DISKS[word]
        elif word in _PACKINGS and packing in {None, _PACKINGS[word]}:
            packing = _PACKINGS[word]
        elif word not in _VARIANTS:
            known = ", ".join((*DiskFormat, *Packing))
            raise ImageError(
                f"image {image} is endorsed as {text[:40]!r}: that cannot be taken in",
                hint=f"formats are {known}: ask the endorser for one of them",
                image=image,
            )
    return Stated(text.strip()[:40], disk, packing)


def require_agreement(
    stated: Stated, found: DiskFormat, packing: Packing | None, *, image: str
) -> None:
    """Refuse bytes that are another disk format than the list states."""
    is_ova = packing is Packing.OVA
    agrees = stated.disk in {None, found} and (is_ova or stated.packing is not Packing.OVA)
    if not agrees:
        raise ImageError(
            f"image {image} is endorsed as {stated.text!r}, and its bytes are {found}",
            hint="ask the endorser to state what the file is",
            image=image,
        )
