"""The piece hashes of an image were lost: its own bytes, which are checked, give them again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from distrib.errors import TorrentMismatch
from distrib.swarm.torrent import info_of
from tests.delta.node import MIB, Node, publish, site_image


def test_lost_piece_hashes_are_made_again_from_the_volume_and_never_from_other_bytes(
    tmp_path: Path,
) -> None:
    published = publish(tmp_path / "image", os.urandom(MIB))
    image = site_image(published.torrent, published.data, "1.0")
    torrents, volume = Node(tmp_path / "node").torrents, tmp_path / "image" / "image.raw"
    assert torrents.layers_of(image, volume) is None
    torrents.accept(info_of(published.torrent), image)
    spoilt = tmp_path / "spoilt.raw"
    spoilt.write_bytes(bytes([published.data[0] ^ 1]) + published.data[1:])
    with pytest.raises(TorrentMismatch, match="other bytes"):
        torrents.layers_of(image, spoilt)
    assert torrents.with_layers(image) is None
    assert torrents.layers_of(image, volume) is not None
    assert torrents.with_layers(image) == torrents.layers_of(image, spoilt)
