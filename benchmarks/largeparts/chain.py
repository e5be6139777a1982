"""Hosts of a chain, a process each, told and heard in lines."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.farm.network import Host

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def peer_on(host: Host, module: str, asked: str) -> Iterator[subprocess.Popen[str]]:
    """``module`` on a host, with one argument."""
    command = [*host.prefix, sys.executable, "-m", module, asked]
    peer = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield peer
    finally:
        peer.kill()
        peer.communicate()


def tell(peer: subprocess.Popen[str], word: str) -> None:
    """Write a line to it."""
    assert peer.stdin is not None
    peer.stdin.write(word + "\n")
    peer.stdin.flush()


def told(peer: subprocess.Popen[str], word: str) -> None:
    """Wait for a line of it. AssertionError when it ends before."""
    assert peer.stdout is not None
    for line in peer.stdout:
        if line.strip() == word:
            return
    raise AssertionError(f"a peer ended before it was {word}")
