"""Which of libtorrent's alerts are listened to, and what those of a torrent say to its transfer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import libtorrent as lt

from distrib.swarm.events import (
    HashFailed,
    PeerDown,
    PeerUp,
    PieceDone,
    StorageFault,
    TransferEvent,
)

CATEGORIES = (
    lt.alert.category_t.status_notification
    | lt.alert.category_t.error_notification
    | lt.alert.category_t.storage_notification
    | lt.alert.category_t.piece_progress_notification
    | lt.alert.category_t.connect_notification
    | lt.alert.category_t.peer_notification
)


def _peer_down(alert: Any) -> PeerDown:
    address, port = alert.endpoint
    return PeerDown(address, port, alert.message())


EVENTS: dict[type[lt.torrent_alert], Callable[[Any], TransferEvent]] = {
    lt.piece_finished_alert: lambda alert: PieceDone(alert.piece_index),
    lt.hash_failed_alert: lambda alert: HashFailed(alert.piece_index),
    lt.peer_connect_alert: lambda alert: PeerUp(*alert.endpoint),
    lt.peer_disconnected_alert: _peer_down,
    lt.peer_error_alert: _peer_down,
    lt.file_error_alert: lambda alert: StorageFault(alert.message(), alert.error.value()),
    lt.torrent_error_alert: lambda alert: StorageFault(alert.message(), alert.error.value()),
}
