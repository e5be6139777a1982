"""Who is connected, as libtorrent tells it when it is asked: this waits for its network thread."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import libtorrent as lt

from distrib.swarm.events import PeerSample


def peers_of(handles: Sequence[lt.torrent_handle]) -> list[tuple[PeerSample, ...]]:
    """The peers of each torrent whose handshake is done; none of one that was closed meanwhile."""
    found = []
    for handle in handles:
        try:
            found.append(_samples(handle.get_peer_info()))
        except RuntimeError:
            # Closed meanwhile.
            found.append(())
    return found


def _samples(peers: Iterable[Any]) -> tuple[PeerSample, ...]:
    unfinished = lt.peer_info.connecting | lt.peer_info.handshake
    return tuple(
        PeerSample(
            address=peer.ip[0],
            port=peer.ip[1],
            interesting=bool(peer.flags & lt.peer_info.interesting),
            received_bytes=peer.total_download,
            sent_bytes=peer.total_upload,
            download_bps=peer.payload_down_speed,
            upload_bps=peer.payload_up_speed,
        )
        for peer in peers
        if not peer.flags & unfinished
    )
