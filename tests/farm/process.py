"""Commands of the product as child processes: started, awaited, killed, ended by pid."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
POLL_S = 0.05


class CommandFailed(Exception):
    """A command ended with another status than 0; both outputs are in the text."""

    def __init__(self, command: str, status: int, out: str, err: str) -> None:
        super().__init__(f"{command}: exit {status}\n{out}{err}")
        self.status = status
        self.out = out
        self.err = err


class Daemon:
    """A long-running child with its output in a log file."""

    def __init__(
        self, command: list[str], *, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env=os.environ | dict(environment or {}),
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    def kill(self) -> None:
        """kill -9, and wait for the end."""
        self._child.kill()
        self._child.wait()

    def signal(self, number: int) -> None:
        self._child.send_signal(number)

    def stop(self, *, limit_s: float = 15.0) -> int:
        """SIGTERM, and its exit status. A child that does not end is killed, and that is said."""
        if self.running:
            self._child.send_signal(signal.SIGTERM)
        try:
            return self._child.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not end in {limit_s} s: {self.tail()}") from None

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])


def command(
    arguments: list[str],
    *,
    prefix: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
    stdin: str = "",
    limit_s: float = 120.0,
) -> str:
    """Run a command to its end and return its output. Raises CommandFailed."""
    done = subprocess.run(
        [*prefix, str(BIN / arguments[0]), *arguments[1:]],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
        env=os.environ | dict(environment or {}),
    )
    if done.returncode != 0:
        raise CommandFailed(" ".join(arguments), done.returncode, done.stdout, done.stderr)
    return done.stdout


def answer(arguments: list[str], **options: Any) -> Any:
    """Run a command with ``--json`` and parse what it prints."""
    return json.loads(command([*arguments, "--json"], **options))


def eventually(
    what: str,
    holds: Callable[[], Any],
    *,
    limit_s: float = 60.0,
    daemon: Daemon | None = None,
    every_s: float = POLL_S,
) -> Any:
    """Wait until ``holds`` gives something true, and return that."""
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        found = holds()
        if found:
            return found
        if daemon is not None and not daemon.running:
            raise AssertionError(f"{what}: the process has ended\n{daemon.tail()}")
        time.sleep(every_s)
    tail = f"\n{daemon.tail()}" if daemon is not None else ""
    raise AssertionError(f"not in {limit_s} s: {what}{tail}")
