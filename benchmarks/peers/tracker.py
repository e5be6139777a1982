"""A tracker for the BitTorrent clients that are compared with: announces over HTTP (BEP 3, 23).

Everybody who announced is given to everybody, in compact form, with a short interval.
"""

from __future__ import annotations

import http.server
import socket
import sys
import urllib.parse

import libtorrent as lt

INTERVAL_S = 5


class Announce(http.server.BaseHTTPRequestHandler):
    """One announce."""

    peers: dict[bytes, set[tuple[str, int]]]

    def do_GET(self) -> None:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query, encoding="latin-1")
        swarm = self.peers.setdefault(query["info_hash"][0].encode("latin-1"), set())
        own = (self.client_address[0], int(query["port"][0]))
        if query.get("event") == ["stopped"]:
            swarm.discard(own)
        else:
            swarm.add(own)
        compact = b"".join(
            socket.inet_aton(address) + port.to_bytes(2, "big")
            for address, port in swarm
            if (address, port) != own
        )
        body = lt.bencode({b"interval": INTERVAL_S, b"min interval": 1, b"peers": compact})
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    Announce.peers = {}
    http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Announce).serve_forever()
