"""Files of hosts on the command line, and the end of a command that spoke to many."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from distrib.errors import DistribError, NotFound, Partial
from distrib.tsunami.hosts import PlainHost, parse_hosts

CONNECTING: Final = 16
"""So many hosts at a time."""


def read_hosts(file: str, user: str) -> tuple[PlainHost, ...]:
    """The hosts of a file, or of standard input (``-``). Raises NotFound, OperatorError."""
    if file == "-":
        return parse_hosts(sys.stdin.read(), user=user, where="standard input")
    try:
        text = Path(file).read_text("utf-8", errors="replace")
    except OSError as error:
        raise NotFound(f"{file}: {error.strerror}", hint="a file of hosts, one a line") from None
    return parse_hosts(text, user=user, where=file)


def end_by(faults: Sequence[DistribError | None], *, as_json: bool, hint: str) -> None:
    """End with 8 where there are faults, which have been told."""
    failed = sum(fault is not None for fault in faults)
    if not failed:
        return
    if as_json:
        sys.exit(Partial.exit_status)
    raise Partial(f"{failed} of {len(faults)} hosts failed", hint=hint)
