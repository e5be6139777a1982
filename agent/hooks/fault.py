"""Whose fault it is that a job cannot be run: its node's, or its own."""

from __future__ import annotations

from distrib.errors import DistribError, ExitStatus

_NODES = frozenset(
    {ExitStatus.BUG, ExitStatus.NO_SPACE, ExitStatus.UNREACHABLE, ExitStatus.TIMED_OUT}
)
_CODES = frozenset({"not-ready", "site-list-stale", "tool-missing", "config-invalid"})


def of_node(error: DistribError) -> bool:
    """Whether another node may not have this fault; else the job is refused everywhere."""
    return error.exit_status in _NODES or error.code in _CODES
