"""An HTTPS server on loopback in a thread: what the fake clouds answer with."""

from __future__ import annotations

import contextlib
import http.server
import ssl
import threading
from collections.abc import Iterator, Mapping
from typing import IO, Protocol

Answer = tuple[int, bytes, Mapping[str, str]]


class Cloud(Protocol):
    """Answers one request; ``body`` has what was sent and ends early where the client did."""

    def answer(
        self, method: str, path: str, headers: Mapping[str, str], body: IO[bytes]
    ) -> Answer | None:
        """Status, content, headers; None: the connection is closed without a word."""
        ...


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, _request: object, _client: object) -> None:
        """Clients are killed, or do not trust us."""


@contextlib.contextmanager
def serving(cloud: Cloud, certificate: str, key: str) -> Iterator[str]:
    """``https://localhost:PORT`` while the block runs."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            answered = cloud.answer(self.command, self.path, headers, self.rfile)
            if answered is None:
                return
            status, content, more = answered
            self.send_response(status)
            for name, value in more.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815

        def log_message(self, *_args: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = _Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=lambda: server.serve_forever(0.02), name="cloud")
    thread.start()
    try:
        yield f"https://localhost:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
