"""Real disks for the stories: made by the tools of the field, never mounted."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

MIB = 1 << 20
SSH_KEY = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEXAMPLE someone@example.org\n"
CLEAN = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/bash\nbob:x:1000:1000::/srv/bob:/bin/sh\n",
    "etc/shadow": b"root:*:19000:0:99999:7:::\nbob:!:19000:0:99999:7:::\n",
    "etc/ssh/sshd_config": b"PermitRootLogin no\n",
    "root/.bashrc": b"\n",
    "home/alice/.profile": b"\n",
}
"""What a guest looks like that nobody can enter."""


def run(*argv: object, stdin: str | None = None) -> str:
    """A tool of the host; its output."""
    words = [str(word) for word in argv]
    return subprocess.run(words, input=stdin, capture_output=True, text=True, check=True).stdout


def tree(folder: Path, files: Mapping[str, bytes | Path]) -> Path:
    """The files in a folder; a Path is where a symbolic link leads."""
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            file.symlink_to(content)
        else:
            file.write_bytes(content)
    return folder


def ext4(file: Path, files: Mapping[str, bytes | Path], *, size_bytes: int = 16 * MIB) -> Path:
    """An ext4 file system with these files."""
    folder = tree(file.with_suffix(".tree"), files)
    file.write_bytes(b"")
    run("truncate", "-s", size_bytes, file)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-d", folder, file)
    return file


def fat(file: Path, files: Mapping[str, bytes], *, size_bytes: int = 8 * MIB) -> Path:
    """A FAT file system with these files."""
    run("truncate", "-s", size_bytes, file)
    run("mkfs.vfat", file)
    folder = tree(file.with_suffix(".tree"), files)
    for entry in sorted(folder.iterdir()):
        run("mcopy", "-s", "-i", file, entry, "::/")
    return file


def xfs(file: Path, files: Mapping[str, bytes | Path], *, size_bytes: int = 320 * MIB) -> Path:
    """An XFS file system with these files (a sparse file: mkfs.xfs makes none smaller)."""
    folder = tree(file.with_suffix(".tree"), files)
    prototype = file.with_suffix(".proto")
    rows = ["/dev/null", "0 0", "d--755 0 0", *_prototype(folder), "$"]
    prototype.write_text("\n".join(rows) + "\n")
    run("truncate", "-s", size_bytes, file)
    run("mkfs.xfs", "-q", "-f", "-p", prototype, file)
    return file


def _prototype(folder: Path) -> list[str]:
    rows = []
    for entry in sorted(folder.iterdir()):
        if entry.is_symlink():
            rows.append(f"{entry.name} l--777 0 0 {entry.readlink()}")
        elif entry.is_dir():
            rows += [f"{entry.name} d--755 0 0", *_prototype(entry), "$"]
        else:
            rows.append(f"{entry.name} ---644 0 0 {entry}")
    return rows


def partitioned(file: Path, *parts: Path) -> Path:
    """A disk with a GPT and one partition for each file system."""
    sizes = [part.stat().st_size for part in parts]
    run("truncate", "-s", sum(sizes) + (len(parts) + 2) * MIB, file)
    rows, start = ["label: gpt"], MIB
    for part, size_bytes in zip(parts, sizes, strict=True):
        rows.append(f"start={start // 512}, size={size_bytes // 512}, type=L")
        run(
            *("dd", f"if={part}", f"of={file}", f"seek={start}", "oflag=seek_bytes", "bs=1M"),
            *("conv=notrunc,sparse", "status=none"),
        )
        start += size_bytes
    run("sfdisk", "-q", file, stdin="\n".join(rows) + "\n")
    return file


def converted(raw: Path, disk_format: str, *options: str) -> Path:
    """The same disk in another format."""
    target = raw.with_suffix(f".{disk_format}{len(options) or ''}")
    words = [word for option in options for word in ("-o", option)]
    run("qemu-img", "convert", "-f", "raw", "-O", disk_format, *words, raw, target)
    return target
