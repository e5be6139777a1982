"""What the JSV asks of others: the agent on its host, and the cell's hosts through ``qhost``."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from pathlib import Path

from agent.hooks.gridengine.names import IMAGES, SCHEDULER
from agent.socket.client import ask

ANSWER_S = 3.0
"""Of the ten seconds that a queue master waits for a JSV."""

FRESH_S = 20.0
_VALUE = re.compile(rf"\b{IMAGES}=\+([0-9a-f+]*)")


class Farm:
    """The site behind a JSV. What hosts hold is looked up beside the submissions, never within one:
    the queue master that answers is the one that waits."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._held: frozenset[str] | None = None
        self._looked_s = float("-inf")
        self._looking: threading.Thread | None = None

    def want(self, image: str, *, user: str, job: str) -> str:
        """See ``agent.hooks.gridengine.jsv.Site``."""
        name = f"{SCHEDULER}:{job}" if job else ""
        answer = ask(
            self._socket, "want", timeout_s=ANSWER_S, image=image, user=user or None, job=name
        )
        return str(answer["identifier"])

    def held(self) -> frozenset[str] | None:
        """Of some seconds ago at best; None before the first answer of ``qhost``."""
        now_s = time.monotonic()
        if now_s - self._looked_s > FRESH_S and (
            self._looking is None or not self._looking.is_alive()
        ):
            self._looked_s = now_s
            self._looking = threading.Thread(target=self._look, name="qhost", daemon=True)
            self._looking.start()
        if self._held is None and self._looking is not None:
            self._looking.join(1.0)
        return self._held

    def _look(self) -> None:
        try:
            done = subprocess.run(
                [_tool("qhost"), "-F", IMAGES],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired):
            return
        if done.returncode == 0:
            self._held = held_in(done.stdout)


def held_in(text: str) -> frozenset[str]:
    """The short ids in an answer of ``qhost -F vm_images``."""
    return frozenset(one for value in _VALUE.findall(text) for one in value.split("+") if one)


def _tool(name: str) -> str:
    binaries = os.environ.get("SGE_BINARY_PATH", "")
    found = Path(binaries) / name
    return str(found) if binaries and found.is_file() else f"/usr/bin/{name}"
