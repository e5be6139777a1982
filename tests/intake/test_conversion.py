"""From what endorsers publish to raw disks; and what hostile files come to."""

from __future__ import annotations

import asyncio
import bz2
import contextlib
import gzip
import hashlib
import io
import lzma
import random
import shutil
import struct
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distrib.catalogue.conversion import Conversion
from distrib.catalogue.formats import stated_format
from distrib.errors import DigestMismatch, DistribError, ImageError
from distrib.inspection.headers import HeaderRefused
from distrib.inspection.sandbox import Sandbox
from tests.intake.disks import CLEAN, MIB, converted, ext4, partitioned, run

SECRET = "root:$6$this-must-never-be-read"
MAX_RAW = 64 * MIB


async def _unchanged() -> None:
    """Nobody touches the file."""


def convert(
    file: Path, stated: str | None = None, *, max_raw_bytes: int = MAX_RAW, tool_s: float = 60
) -> Path:
    """The raw disk of a file, in a folder of its own."""
    folder = file.parent / f"in-{file.name}"
    folder.mkdir(exist_ok=True)
    source = Path(shutil.copy(file, folder / "image.endorsed"))
    conversion = Conversion(Sandbox.of_user(), max_raw_bytes, tool_s)
    return asyncio.run(
        conversion.to_raw(
            source, stated=stated_format(stated, image="it"), image="it", unchanged=_unchanged
        )
    )


def refused(file: Path, stated: str | None = None, **limits: float) -> str:
    """Why it is not taken in."""
    with pytest.raises(ImageError) as caught:
        convert(file, stated, **limits)  # type: ignore[arg-type]
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guest's disk."""
    folder = tmp_path_factory.mktemp("disk")
    return partitioned(folder / "disk.raw", ext4(folder / "root.img", CLEAN))


def ova(target: Path, *members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    """An OVA with these members beside its description."""
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in (("vm.ovf", b"<Envelope/>"), *members):
            info = tarfile.TarInfo(name)
            info.size, info.type = len(content), kind if name.endswith(".vmdk") else tarfile.REGTYPE
            archive.addfile(info, io.BytesIO(content))
    return target


CONVERSIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "qcow2": ("qcow2", ()),
    "qcow2 compressed by zstd": ("qcow2", ("compression_type=zstd",)),
    "vmdk": ("vmdk", ()),
    "vmdk streamOptimized": ("vmdk", ("subformat=streamOptimized",)),
    "vdi": ("vdi", ()),
    "vhd": ("vpc", ("force_size=on",)),
    "vhd of fixed size": ("vpc", ("subformat=fixed", "force_size=on")),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_every_format_gives_the_same_disk(disk: Path, name: str) -> None:
    disk_format, options = CONVERSIONS[name]
    stated = {"vpc": "VHD"}.get(disk_format, disk_format.upper())

    raw = convert(converted(disk, disk_format, *options), stated)

    assert raw.read_bytes() == disk.read_bytes()
    # It is as sparse as it was.
    assert raw.stat().st_blocks * 512 < disk.stat().st_size


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: run_bytes("zstd", data),
}


def run_bytes(tool: str, data: bytes) -> bytes:
    import subprocess

    return subprocess.run([tool, "-c"], input=data, capture_output=True, check=True).stdout


@pytest.mark.parametrize("name", PACKERS)
def test_what_is_packed_is_unpacked(tmp_path: Path, disk: Path, name: str) -> None:
    packed = tmp_path / f"disk.{name}"
    packed.write_bytes(PACKERS[name](disk.read_bytes()))
    assert convert(packed).read_bytes() == disk.read_bytes()

    both = tmp_path / f"disk.vdi.{name}"
    both.write_bytes(PACKERS[name](converted(disk, "vdi").read_bytes()))
    assert convert(both, f"vdi.{name}").read_bytes() == disk.read_bytes()


def test_the_disk_of_an_ova_is_taken_whatever_its_name_says(tmp_path: Path, disk: Path) -> None:
    vmdk = converted(disk, "vmdk", "subformat=streamOptimized").read_bytes()
    names = ("../../../etc/cron.d/disk.vmdk", "vm.mf")
    archive = ova(tmp_path / "vm.ova", (names[0], vmdk), (names[1], b"SHA256(vm.ovf)= 0\n"))

    raw = convert(archive, "OVA")

    assert raw.read_bytes() == disk.read_bytes()
    assert sorted(file.name for file in raw.parent.iterdir()) == [
        "image.endorsed",
        "image.raw.part",
    ]


def test_an_ova_is_one_disk_in_regular_files(tmp_path: Path, disk: Path) -> None:
    vmdk = converted(disk, "vmdk").read_bytes()
    assert "with 2 disks" in refused(ova(tmp_path / "2.ova", ("a.vmdk", vmdk), ("b.vmdk", vmdk)))
    assert "with 0 disks" in refused(ova(tmp_path / "0.ova"))
    linked = ova(tmp_path / "link.ova", ("a.vmdk", b""), kind=tarfile.SYMTYPE)
    assert "links or devices" in refused(linked)
    cut = ova(tmp_path / "cut.ova", ("a.vmdk", vmdk))
    cut.write_bytes(cut.read_bytes()[: len(vmdk) // 2])
    assert "ends within" in refused(cut)
    bare = tmp_path / "bare.tar"
    with tarfile.open(bare, "w") as archive:
        archive.addfile(tarfile.TarInfo("disk.vmdk"))
    assert "0 OVF descriptions" in refused(bare)


def hostile_files(folder: Path, secret: Path) -> dict[str, Path]:
    """Images that would have a converter read ``secret``."""
    files = {name: folder / name for name in ("backing", "data", "vmdk", "parent", "flat", "ova")}
    run(
        *("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", secret, "-F", "raw"),
        *(files["backing"], MIB),
    )
    run(
        "qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={folder}/d", files["data"], MIB
    )
    descriptor = f'# Disk DescriptorFile\nversion=1\nRW 2048 FLAT "{secret}" 0\n'
    files["vmdk"].write_text(descriptor)
    # The same descriptor in a header that makes QEMU look for it.
    header = struct.pack("<4sIIQQQQIQQQ", b"KDMV", 1, 3, 0, 128, 1, 4, 512, 0, 0, 0)
    files["flat"].write_bytes(header.ljust(512, b"\0") + descriptor.encode().ljust(2048, b"\0"))
    base = folder / "base.vmdk"
    run("qemu-img", "create", "-q", "-f", "vmdk", base, MIB)
    run("qemu-img", "create", "-q", "-f", "vmdk", "-b", base, "-F", "vmdk", files["parent"])
    ova(files["ova"], ("a.vmdk", descriptor.encode().ljust(4096, b"\0")))
    return files


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the host that everybody may read."""
    file = tmp_path / "secret"
    file.write_bytes(SECRET.encode().ljust(MIB, b"\0"))
    file.chmod(0o444)
    return file


def test_an_image_that_names_other_files_is_refused(tmp_path: Path, secret: Path) -> None:
    told = {name: refused(file) for name, file in hostile_files(tmp_path, secret).items()}

    assert "backing file" in told["backing"]
    assert "data is in another file" in told["data"]
    assert "only names other files" in told["vmdk"]
    assert "no capacity" in told["flat"]
    assert "parent" in told["parent"]
    assert "only names other files" in told["ova"]


def test_even_where_the_header_is_not_looked_at_nothing_else_can_be_read(
    tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distrib.catalogue import conversion
    from distrib.inspection.headers import DiskFormat, DiskHeader

    files = hostile_files(tmp_path, secret)
    monkeypatch.setattr(
        conversion, "read_header", lambda disk_format, _read, _size: DiskHeader(disk_format, MIB)
    )
    assert "qemu-img finds backing-filename" in refused(files["backing"])
    # And if its own report were believed as well: the sandbox shows it no other file.
    monkeypatch.setattr(conversion, "_checked_info", lambda _told, _disk, _image: MIB)
    for name in ("backing", "data", "parent"):
        assert "Could not open" in refused(files[name]) or "No such file" in refused(files[name])
    monkeypatch.setattr(conversion, "format_of", lambda _read, _size: DiskFormat.VMDK)
    for name in ("vmdk", "flat"):
        refused(files[name])
    for part in tmp_path.rglob("image.raw.part"):
        assert SECRET.encode() not in part.read_bytes()


def test_bombs_are_refused_before_they_go_off(tmp_path: Path) -> None:
    petabyte = tmp_path / "petabyte.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", petabyte, 1 << 50)
    assert "its disk has 1125899906842624 bytes" in refused(petabyte)

    for name in ("gz", "zst"):
        bomb = tmp_path / f"bomb.{name}"
        bomb.write_bytes(PACKERS[name](bytes(MAX_RAW + MIB)))
        assert "unpacks to more than" in refused(bomb)
        unpacked = tmp_path / f"in-{bomb.name}" / "image.unpacked"
        assert unpacked.stat().st_size <= MAX_RAW

    twice = tmp_path / "twice.gz"
    twice.write_bytes(gzip.compress(gzip.compress(b"x" * 4096)))
    assert "packed twice" in refused(twice)


def test_damaged_files_are_refused_in_one_line(tmp_path: Path, disk: Path) -> None:
    packed = gzip.compress(disk.read_bytes())
    cut = tmp_path / "cut.gz"
    cut.write_bytes(packed[: len(packed) // 2])
    assert "unexpected end of file" in refused(cut)

    whole = converted(disk, "qcow2").read_bytes()
    for name, damage in {"header": (8, 200), "tables": (65536, 4 * 65536)}.items():
        broken = tmp_path / f"{name}.qcow2"
        noise = hashlib.shake_256(name.encode()).digest(damage[1] - damage[0])
        broken.write_bytes(whole[: damage[0]] + noise + whole[damage[1] :])
        refused(broken)
    short = tmp_path / "short.qcow2"
    short.write_bytes(whole[:40])
    assert "ends within its qcow2 header" in refused(short)


def test_a_raw_disk_must_not_be_taken_for_another_format(tmp_path: Path, disk: Path) -> None:
    nested = tmp_path / "nested.raw"
    inner = converted(disk, "qcow2").read_bytes()
    nested.write_bytes(inner.ljust(-(-len(inner) // 512) * 512, b"\0"))
    outer = converted(nested, "vdi")
    assert "begins like qcow2" in refused(outer)
    assert "endorsed as 'raw', and its bytes are qcow2" in refused(nested, "raw")
    assert "endorsed as 'vmdk', and its bytes are raw" in refused(disk, "vmdk")


def test_a_tool_that_hangs_is_ended(tmp_path: Path, disk: Path) -> None:
    packed = tmp_path / "disk.gz"
    packed.write_bytes(gzip.compress(bytes(32 * MIB)))
    assert "took longer than" in refused(packed, tool_s=0.01)


def test_a_file_that_changes_between_check_and_conversion_is_refused(disk: Path) -> None:
    async def changed() -> None:
        raise DigestMismatch("it has changed", hint="")

    source = Path(shutil.copy(converted(disk, "qcow2"), disk.parent / "moving"))
    conversion = Conversion(Sandbox.of_user(), MAX_RAW, 60)
    with pytest.raises(DistribError, match="it has changed"):
        asyncio.run(
            conversion.to_raw(
                source, stated=stated_format(None, image="it"), image="it", unchanged=changed
            )
        )


@pytest.mark.parametrize("text", ["floppy", "qcow2 vmdk", "gz.xz", "../../etc", "\x1b[2J"])
def test_formats_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(ImageError, match="that cannot be taken in"):
        stated_format(text, image="it")


def test_mutated_headers_are_read_or_refused_and_nothing_else(tmp_path: Path, disk: Path) -> None:
    from distrib.catalogue.ova import disk_of
    from distrib.inspection.headers import format_of, read_header

    vmdk = converted(disk, "vmdk").read_bytes()
    seeds = [converted(disk, one).read_bytes()[:8192] for one in ("qcow2", "vdi", "vpc")]
    seeds += [vmdk[:8192], ova(tmp_path / "m.ova", ("a.vmdk", vmdk[:4096])).read_bytes()[:8192]]
    chance = random.Random(16)
    started = time.monotonic()
    for number in range(4000):
        data = bytearray(seeds[number % len(seeds)])
        for _ in range(chance.randint(1, 12)):
            at = chance.randrange(2048)
            data[at : at + chance.choice((1, 4, 8))] = chance.randbytes(chance.choice((1, 4, 8)))

        def read(offset: int, count: int, data: bytes = bytes(data)) -> bytes:
            return data[offset : offset + count]

        for parse in (
            lambda: read_header(format_of(read, 8192), read, 8192),
            lambda: disk_of(read, 8192),
        ):
            with contextlib.suppress(HeaderRefused):
                parse()
    assert time.monotonic() - started < 20


def test_headers_are_read_within_bounds() -> None:
    from distrib.inspection.headers import DiskFormat, read_header

    asked: list[int] = []

    def read(offset: int, count: int) -> bytes:
        asked.append(count)
        return b"\xff" * count

    for disk_format in DiskFormat:
        if disk_format is not DiskFormat.RAW:
            with pytest.raises(HeaderRefused):
                read_header(disk_format, read, 1 << 40)
    assert max(asked) <= 1 << 16
