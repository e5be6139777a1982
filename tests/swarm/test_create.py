"""Torrents of large images: made by several processes, the same as libtorrent makes them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import libtorrent as lt
import pytest

from distrib.errors import ImageError, StorageFailed
from distrib.swarm.hashing import hash_file
from distrib.swarm.torrent import make_torrent, make_torrent_and_digest

MIB = 1 << 20
BIN = Path(sys.executable).parent


def _image(directory: Path, size_bytes: int) -> Path:
    image = directory / "image.raw"
    image.write_bytes(os.urandom(size_bytes))
    return image


def _by_libtorrent(image: Path, piece_bytes: int) -> bytes:
    entry = lt.create_file_entry(image.name, image.stat().st_size)
    torrent = lt.create_torrent([entry], piece_bytes, lt.create_torrent.v2_only)
    torrent.set_priv(True)
    lt.set_piece_hashes(torrent, str(image.parent))
    document: Any = torrent.generate()
    kept: Any = {key: document[key] for key in (b"info", b"piece layers")}
    return lt.bencode(kept)


@pytest.mark.parametrize("size_bytes", [1, 16_384, 65_536, 65_537, 300_001, 9_000_001])
def test_a_torrent_is_the_one_that_libtorrent_makes(tmp_path: Path, size_bytes: int) -> None:
    image, out = _image(tmp_path, size_bytes), tmp_path / "t"
    _, sha512 = make_torrent_and_digest(image, piece_bytes=65_536, out=out)
    assert out.read_bytes() == _by_libtorrent(image, 65_536)
    assert sha512 == hashlib.sha512(image.read_bytes()).hexdigest()


@pytest.mark.parametrize("digest", [False, True])
@pytest.mark.parametrize("workers", [1, 3])
def test_processes_find_what_one_finds_alone(tmp_path: Path, workers: int, *, digest: bool) -> None:
    image = _image(tmp_path, 41 * MIB + 17)
    size_bytes = image.stat().st_size
    told: list[int] = []
    with image.open("rb") as stream:
        alone = hash_file(stream.fileno(), size_bytes, piece_bytes=65_536, digest=digest)
        found = hash_file(
            stream.fileno(),
            size_bytes,
            piece_bytes=65_536,
            digest=digest,
            workers=workers,
            on_progress=told.append,
        )
    assert found == alone
    assert told == sorted(told)
    assert told[-1] == size_bytes


@pytest.mark.parametrize("digest", [False, True])
def test_a_file_that_ends_too_soon_is_said_in_one_line(tmp_path: Path, *, digest: bool) -> None:
    image, before = _image(tmp_path, 9 * MIB), _children()
    with image.open("rb") as stream, pytest.raises(StorageFailed, match="reading at byte"):
        hash_file(stream.fileno(), 30 * MIB, piece_bytes=65_536, workers=2, digest=digest)
    assert _children() == before


def test_a_file_that_is_written_to_meanwhile_makes_no_torrent(tmp_path: Path) -> None:
    image, out = _image(tmp_path, 3 * MIB), tmp_path / "t"

    def touch(_done: int) -> None:
        os.utime(image)

    with pytest.raises(ImageError, match="written to"):
        make_torrent(image, piece_bytes=65_536, out=out, on_progress=touch)
    assert not out.exists()


def test_interrupted_it_leaves_neither_processes_nor_a_torrent(tmp_path: Path) -> None:
    """Ctrl-C at the terminal, in the middle of an image of 200 GB."""
    image, out = tmp_path / "big.raw", tmp_path / "big.torrent"
    with image.open("wb") as stream:
        stream.truncate(200 * 10**9)
    create = subprocess.Popen(
        [str(BIN / "distrib"), "torrent", "create", str(image), "-o", str(out)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert create.stderr is not None
    assert "hashing big.raw" in create.stderr.readline()
    workers = _children(create.pid)
    assert workers
    create.send_signal(signal.SIGINT)
    assert create.wait(10) == 130
    assert create.stderr.read() == ""
    create.stderr.close()
    assert [pid for pid in workers if Path(f"/proc/{pid}").exists()] == []
    assert list(tmp_path.iterdir()) == [image]


def _children(pid: int | None = None) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid or os.getpid()}/task").iterdir():
        # A thread that has just ended may still be listed.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += [int(child) for child in (task / "children").read_text("ascii").split()]
    return found
