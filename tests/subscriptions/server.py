"""A server of lists on loopback, over TLS, that answers as a story wants: well, or very badly."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distrib.trust.testpki import Demo


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]

    @property
    def credentials(self) -> str:
        """``user:password``, or nothing."""
        scheme, _, encoded = self.headers.get("authorization", "").partition(" ")
        return base64.b64decode(encoded).decode() if scheme == "Basic" else ""


Answer = Callable[[Request], Iterable[bytes]]


@dataclass
class ListServer:
    """``answers`` by path; ``requests`` are what came."""

    base: str
    ca_file: Path
    stopped: threading.Event
    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.base}/image.list"

    def serve(self, message: bytes, path: str = "/image.list", *, auth: str = "") -> None:
        """Serve ``message`` with its ETag, to whom has the credentials."""

        def answer(request: Request) -> Iterable[bytes]:
            etag = f'"{hashlib.sha256(message).hexdigest()}"'
            if auth and request.credentials != auth:
                yield head(401, ("WWW-Authenticate", "Basic"), ("Content-Length", "0"))
            elif request.headers.get("if-none-match") == etag:
                yield head(304, ("ETag", etag))
            else:
                yield head(200, ("ETag", etag), ("Content-Length", str(len(message))))
                yield message

        self.answers[path] = answer

    def drip(self, first: bytes) -> Iterator[bytes]:
        """``first``, then a byte now and then until the server stops."""
        yield first
        while not self.stopped.wait(0.02):
            yield b"x"

    def flood(self, first: bytes, chunk: bytes) -> Iterator[bytes]:
        """``first``, then ``chunk`` for ever."""
        yield first
        while not self.stopped.is_set():
            yield chunk


def head(status: int, *headers: tuple[str, str]) -> bytes:
    """Status line and headers."""
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in headers)]
    return ("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode()


@contextlib.contextmanager
def list_server(pki: Demo) -> Iterator[ListServer]:
    """Runs while the block does."""
    certs = pki.site.directory / "certs"
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certs / "server.pem", certs / "server.key")
    stopped = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                self.request.settimeout(10)
                with context.wrap_socket(self.request, server_side=True) as tls:
                    self._answer(tls)

        def _answer(self, tls: ssl.SSLSocket) -> None:
            data = b""
            while b"\r\n\r\n" not in data:
                received = tls.recv(65536)
                if not received:
                    return
                data += received
            line, *rows = data.split(b"\r\n\r\n")[0].decode().split("\r\n")
            headers = {key.lower(): value for key, _, value in (r.partition(": ") for r in rows)}
            request = Request(line.split()[1], headers)
            running.requests.append(request)
            answer = running.answers.get(request.path)
            for chunk in answer(request) if answer else [head(404, ("Content-Length", "0"))]:
                tls.sendall(chunk)
            with contextlib.suppress(OSError):
                tls.unwrap()

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients go away in the middle: that is the story."""

    with Server(("127.0.0.1", 0), Handler) as server:
        port = server.server_address[1]
        running = ListServer(f"https://localhost:{port}", pki.site.directory / "ca.pem", stopped)
        thread = threading.Thread(target=lambda: server.serve_forever(0.05), name="lists")
        thread.start()
        try:
            yield running
        finally:
            stopped.set()
            server.shutdown()
            thread.join(10)


def free_port() -> int:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
        return port
