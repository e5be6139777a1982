"""libtorrent with its default settings, in a process of its own: seeds, or downloads and seeds on.

Prints "listening" when it listens; begins at a line on standard input; prints "done" when it has
all. Ends when standard input does.
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
            "alert_mask": lt.alert.category_t.status_notification,
        }
    )
    adding = lt.load_torrent_file(torrent)
    adding.save_path = directory
    print("listening", flush=True)
    sys.stdin.readline()
    if role == "seed":
        adding.flags |= lt.torrent_flags.seed_mode
    session.add_torrent(adding)
    while role == "fetch":
        session.wait_for_alert(1000)
        if any(isinstance(a, lt.torrent_finished_alert) for a in session.pop_alerts()):
            print("done", flush=True)
            break
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
