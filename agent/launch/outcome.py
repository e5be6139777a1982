"""What a guest reported on its result port, and what its console said. Pure.

The port carries text lines: ``ready`` when the job is about to start, then the job's exit status
alone, or ``failed REASON``. A guest that writes nothing but the status is understood too.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_RESULT_BYTES = 4096


@dataclass(frozen=True)
class Outcome:
    """``exit_status`` (0-255), or ``failed`` with a reason, or neither: the guest said nothing."""

    exit_status: int | None = None
    failed: str | None = None


def parse_result(data: bytes) -> Outcome:
    """The outcome in the bytes of the result port; the last complete word counts."""
    outcome = Outcome()
    for line in data[:MAX_RESULT_BYTES].decode("ascii", "replace").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word.isdecimal() and not rest and int(word) <= 255:
            outcome = Outcome(exit_status=int(word))
        elif word == "failed":
            outcome = Outcome(failed=_printable(rest) or "no reason given")
    return outcome


def console_tail(data: bytes, *, lines: int = 30) -> str:
    """The last lines of a console log, safe to show on a terminal: a guest writes what it likes."""
    text = _printable(data.decode("utf-8", "replace").replace("\r", ""))
    return "\n".join(text.strip("\n").split("\n")[-lines:])


def _printable(text: str) -> str:
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )
