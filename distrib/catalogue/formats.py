"""Which image formats the site can take: raw, for now."""

from __future__ import annotations

from pathlib import Path

from distrib.errors import ImageError

# First bytes by format. What libvirt or qemu-img would take for another format is no raw image.
_MAGIC = {
    b"QFI\xfb": "qcow2",
    b"KDMV": "vmdk",
    b"# Disk DescriptorFile": "vmdk",
    b"conectix": "vhd",
    b"vhdxfile": "vhdx",
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


def require_raw(stated: str | None, *, image: str) -> None:
    """Refuse an endorsed format (``hv:format``) other than raw; absent is raw."""
    if stated is not None and stated.lower() != "raw":
        raise ImageError(
            f"image {image} is endorsed as {stated[:40]!r}: only raw images can be approved",
            hint="ask the endorser for the raw image",
            image=image,
        )


def require_raw_bytes(file: Path, *, image: str) -> None:
    """Refuse a file that begins like another format, whatever the list says of it."""
    with file.open("rb") as stream:
        head = stream.read(32)
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            raise ImageError(
                f"image {image} begins like {name}: only raw images can be approved",
                hint="ask the endorser for the raw image",
                image=image,
            )
