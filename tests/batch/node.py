"""An agent's socket without an agent: answers ``status`` and ``want`` as told."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distrib.errors import DistribError

UUID = "7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f6c11"
ALIAS = "ccin2p3"


def status(*, leasable: bool = True, state: str = "ready") -> dict[str, Any]:
    """As the agent's: one image."""
    image = {"identifier": UUID, "version": "1.0", "state": state, "active": True}
    return {"leasable": leasable, "aliases": {ALIAS: UUID}, "report": {"images": [image]}}


Answer = dict[str, Any] | Callable[[dict[str, Any]], dict[str, Any]]


class AgentThatSays:
    """Serves a socket while it is entered; ``error`` is the answer to everything. An answer is
    what is said, or what says it for the arguments."""

    def __init__(self, path: Path, *, error: DistribError | None = None, **answers: Answer) -> None:
        def answer(op: str, args: dict[str, Any]) -> dict[str, Any]:
            try:
                if error is not None:
                    raise error
                said = answers[op]
                return {"v": 1, "ok": True, "result": said(args) if callable(said) else said}
            except DistribError as refused:
                return {"v": 1, "ok": False, "error": refused.as_dict()}

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                for line in self.rfile:
                    request = json.loads(line)
                    told = answer(request["op"], request.get("args", {}))
                    self.wfile.write(json.dumps(told).encode() + b"\n")

        self._path = path
        self._server = socketserver.ThreadingUnixStreamServer(str(path), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Path:
        self._thread.start()
        return self._path

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
