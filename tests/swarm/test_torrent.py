"""Torrents as they are made, carried on the bus and checked on a node."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import libtorrent as lt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrib.errors import DistribError, ImageError, NotFound, OperatorError, TorrentMismatch
from distrib.swarm.pieces import check_volume, piece_hashes
from distrib.swarm.torrent import (
    TorrentInfo,
    check_info,
    document_of,
    info_of,
    make_torrent,
    parse_info,
    piece_bytes_for,
)

KIB = 1024


def _image(directory: Path, size_bytes: int) -> Path:
    image = directory / "image.raw"
    image.write_bytes(os.urandom(size_bytes))
    return image


def _made(
    directory: Path, size_bytes: int, piece_bytes: int = 64 * KIB
) -> tuple[TorrentInfo, bytes]:
    out = directory / "image.torrent"
    info = make_torrent(_image(directory, size_bytes), piece_bytes=piece_bytes, out=out)
    return info, out.read_bytes()


def test_what_travels_on_the_bus_is_small_private_and_hashes_to_its_name(tmp_path: Path) -> None:
    info, torrent = _made(tmp_path, 3_000_000)
    raw = info_of(torrent)
    assert len(raw) < KIB
    assert hashlib.sha256(raw).hexdigest() == info.infohash
    document: Any = lt.bdecode(torrent)
    assert set(document) == {b"info", b"piece layers"}
    assert document[b"info"][b"private"] == 1
    assert b"pieces" not in document[b"info"]
    assert lt.torrent_info(document_of(raw)).info_hashes().v2.to_bytes().hex() == info.infohash


def test_the_same_image_makes_the_same_torrent_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    data = os.urandom(200_000)
    made = []
    for folder in ("a", "b"):
        (tmp_path / folder / "image.raw").write_bytes(data)
        made.append(
            make_torrent(
                tmp_path / folder / "image.raw",
                piece_bytes=64 * KIB,
                out=tmp_path / folder / "image.torrent",
            )
        )
    assert made[0] == made[1]


@pytest.mark.parametrize("size_bytes", [1, 16 * KIB, 64 * KIB, 64 * KIB + 1, 5 * 64 * KIB - 7])
def test_piece_hashes_of_our_own_agree_with_libtorrents(tmp_path: Path, size_bytes: int) -> None:
    info, torrent = _made(tmp_path, size_bytes)
    with (tmp_path / "image.raw").open("r+b") as image:
        assert all(check_volume(image.fileno(), torrent, info))
        image.seek(size_bytes - 1)
        last = image.read(1)
        image.seek(size_bytes - 1)
        image.write(bytes([last[0] ^ 1]))
        image.flush()
        found = list(check_volume(image.fileno(), torrent, info))
    assert found == [True] * (info.pieces - 1) + [False]


def test_another_images_piece_layer_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    info, torrent = _made(tmp_path / "a", 300_000)
    _, other = _made(tmp_path / "b", 300_000)
    forged: Any = lt.bdecode(torrent)
    theirs: Any = lt.bdecode(other)
    root = next(iter(forged[b"piece layers"]))
    forged[b"piece layers"][root] = next(iter(theirs[b"piece layers"].values()))
    with pytest.raises(TorrentMismatch, match="piece layer"):
        piece_hashes(lt.bencode(forged), info)


def test_a_torrent_in_the_place_of_another_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    info, torrent = _made(tmp_path, 100_000)
    with pytest.raises(TorrentMismatch, match="in the place of"):
        check_info(
            info_of(torrent),
            infohash="0" * 64,
            size_bytes=info.size_bytes,
            piece_bytes=info.piece_bytes,
        )


@pytest.mark.parametrize(("size_bytes", "piece_bytes"), [(99, 64 * KIB), (100_000, 128 * KIB)])
def test_a_torrent_that_contradicts_the_site_list_is_refused(
    tmp_path: Path, size_bytes: int, piece_bytes: int
) -> None:
    info, torrent = _made(tmp_path, 100_000)
    with pytest.raises(TorrentMismatch, match="the site list says"):
        check_info(
            info_of(torrent),
            infohash=info.infohash,
            size_bytes=size_bytes,
            piece_bytes=piece_bytes,
        )


@pytest.mark.parametrize(
    "change",
    [
        {b"private": 0},
        {b"meta version": 1},
        {b"pieces": b"x" * 20},
        {b"file tree": {b"../image.raw": {b"": {b"length": 5, b"pieces root": b"r" * 32}}}},
        {b"piece length": 3},
    ],
    ids=["public", "v1", "hybrid", "another name", "odd pieces"],
)
def test_only_private_v2_torrents_of_one_image_are_read(
    tmp_path: Path, change: dict[bytes, Any]
) -> None:
    _, torrent = _made(tmp_path, 100_000)
    fields: Any = lt.bdecode(info_of(torrent))
    with pytest.raises(TorrentMismatch):
        parse_info(lt.bencode(fields | change))


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_rubbish_is_refused_and_never_crashes(data: bytes) -> None:
    with pytest.raises(TorrentMismatch):
        parse_info(data)


def test_what_cannot_be_a_torrent_is_said_in_one_line(tmp_path: Path) -> None:
    image = _image(tmp_path, 10)
    faults: list[tuple[type[DistribError], Path, int]] = [
        (OperatorError, image, 3 * KIB),
        (NotFound, tmp_path / "no" / "image.raw", 64 * KIB),
    ]
    for kind, path, piece_bytes in faults:
        with pytest.raises(kind) as caught:
            make_torrent(path, piece_bytes=piece_bytes, out=tmp_path / "t")
        assert caught.value.hint
    image.write_bytes(b"")
    with pytest.raises(ImageError, match="empty"):
        make_torrent(image, piece_bytes=64 * KIB, out=tmp_path / "t")


@given(st.integers(min_value=1, max_value=1 << 42))
def test_piece_sizes_stay_within_bounds(size_bytes: int) -> None:
    piece = piece_bytes_for(size_bytes)
    assert 64 * KIB <= piece <= 4096 * KIB
    assert piece & (piece - 1) == 0
    assert size_bytes <= piece * 16_384 or piece >= 256 * KIB
    assert size_bytes <= piece * 32_768 or piece == 4096 * KIB
