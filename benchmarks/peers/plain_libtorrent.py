"""libtorrent with its default settings, in a process of its own: seeds, or downloads and seeds on.

Prints "listening" when it listens; begins at a line on standard input; prints "done" when it has
all, and "written" when the file has it too. Ends when standard input does.
"""

from __future__ import annotations

import sys

import libtorrent as lt


def main(address: str, torrent: str, directory: str, role: str) -> None:
    """``role``: "seed" or "fetch"."""
    session = lt.session(
        {
            "listen_interfaces": f"{address}:6881",
            "outgoing_interfaces": address,
            # No Internet here; what stays on are its defaults for swarms.
            "enable_dht": False,
            "enable_lsd": False,
            "enable_upnp": False,
            "enable_natpmp": False,
            "alert_mask": lt.alert.category_t.status_notification
            | lt.alert.category_t.storage_notification,
        }
    )
    adding = lt.load_torrent_file(torrent)
    adding.save_path = directory
    print("listening", flush=True)
    sys.stdin.readline()
    if role == "seed":
        adding.flags |= lt.torrent_flags.seed_mode
    handle = session.add_torrent(adding)
    if role == "fetch":
        _await(session, lt.torrent_finished_alert)
        print("done", flush=True)
        handle.flush_cache()
        _await(session, lt.cache_flushed_alert)
        print("written", flush=True)
    sys.stdin.read()


def _await(session: lt.session, kind: type[lt.alert]) -> None:
    while True:
        session.wait_for_alert(1000)
        if any(isinstance(alert, kind) for alert in session.pop_alerts()):
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
