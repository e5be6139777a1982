"""How fast a torrent is made, beside what the processor and the disk give."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from distrib.swarm.hashing import default_workers, hash_file
from distrib.swarm.torrent import make_torrent, make_torrent_and_digest, piece_bytes_for

MIB = 1 << 20
LARGE_BYTES = 60 * 10**9


def measured(directory: Path, size_gb: float) -> dict[str, object]:
    """A file of ``size_gb`` without holes, made in ``directory``, is hashed cold and, where it fits
    into half of the memory, warm."""
    size_bytes = int(size_gb * 1e9) // MIB * MIB
    with tempfile.TemporaryDirectory(dir=directory, prefix="distrib-large-") as folder:
        image = Path(folder) / "image.raw"
        _fill(image, size_bytes)
        out = Path(folder) / "image.torrent"
        piece_bytes = piece_bytes_for(LARGE_BYTES)

        def torrent() -> None:
            make_torrent(image, piece_bytes=piece_bytes, out=out)

        def both() -> None:
            make_torrent_and_digest(image, piece_bytes=piece_bytes, out=out)

        def alone() -> None:
            with image.open("rb") as stream:
                hash_file(stream.fileno(), size_bytes, piece_bytes=piece_bytes, workers=1)

        cold: dict[str, int] = {}
        for name, act in (
            ("disk_bytes_per_s", lambda: _read(image, size_bytes)),
            ("torrent_cold_bytes_per_s", torrent),
            ("torrent_and_sha512_cold_bytes_per_s", both),
        ):
            _forget(image)
            cold[name] = _rate(size_bytes, act)
        warm: dict[str, int] = {}
        if size_bytes <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2:
            _read(image, size_bytes)
            for name, act in (
                ("torrent_bytes_per_s", torrent),
                ("torrent_by_one_process_bytes_per_s", alone),
                ("torrent_and_sha512_bytes_per_s", both),
            ):
                warm[name] = _rate(size_bytes, act)
    hashed = warm.get("torrent_bytes_per_s", cold["torrent_cold_bytes_per_s"])
    openssl = openssl_bytes_per_s(default_workers())
    return {
        "size_bytes": size_bytes,
        "piece_bytes": piece_bytes,
        "cores": default_workers(),
        "torrent_bytes_per_s": hashed,
        "openssl_sha256_bytes_per_s_times_cores": openssl,
        "torrent_over_openssl": round(hashed / openssl, 3),
        "openssl_sha512_bytes_per_s": openssl_bytes_per_s(1, "sha512"),
        **cold,
        **warm,
        "torrent_cold_over_disk": round(
            cold["torrent_cold_bytes_per_s"] / cold["disk_bytes_per_s"], 3
        ),
        "60_gb_cold_s": round(LARGE_BYTES / cold["torrent_cold_bytes_per_s"]),
    }


def openssl_bytes_per_s(cores: int, digest: str = "sha256") -> int:
    """``openssl speed`` over blocks of 16 KiB, on so many cores at once."""
    command = ["openssl", "speed", "-mr", "-evp", digest, "-bytes", "16384", "-seconds", "3"]
    multi = ["-multi", str(cores)] if cores > 1 else []
    said = subprocess.run([*command, *multi], capture_output=True, text=True, check=True).stdout
    found = re.search(r"^\+F:\d+:[^:]+:([\d.]+)", said, re.MULTILINE)
    if found is None:
        raise AssertionError(f"openssl speed says: {said[-300:]}")
    return int(float(found[1]))


def _fill(image: Path, size_bytes: int) -> None:
    with image.open("wb") as out:
        for _ in range(0, size_bytes, MIB):
            out.write(os.urandom(MIB))
        out.flush()
        os.fsync(out.fileno())


def _forget(image: Path) -> None:
    """Out of the page cache."""
    with image.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(image: Path, size_bytes: int) -> None:
    """All of it, as many readers as there are cores, in ranges as the hashing takes them."""
    step = 4 * MIB
    fd = os.open(image, os.O_RDONLY)

    def read(at: int) -> None:
        os.pread(fd, step, at)

    with ThreadPoolExecutor(default_workers()) as pool:
        list(pool.map(read, range(0, size_bytes, step)))
    os.close(fd)


def _rate(size_bytes: int, act: Callable[[], None]) -> int:
    began_s = time.perf_counter()
    act()
    return int(size_bytes / (time.perf_counter() - began_s))
