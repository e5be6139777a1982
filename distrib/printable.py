"""Text from data, made fit for a terminal: nothing in it moves the cursor or turns the line."""

from __future__ import annotations

import unicodedata

# Controls, formats (also the marks that reverse the reading order), surrogates, private use.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def printable(value: object) -> str:
    """``value`` as one line without anything that a terminal would act on."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(char) in _UNSAFE else char
        for char in str(value)
    )


def bytes_text(count: int) -> str:
    """``67108864`` as ``64.0 MiB``; rounded down, so that nothing looks more than it is."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{count} B" if unit == "B" else f"{int(size * 10) / 10:.1f} {unit}"
        size /= 1024
    raise AssertionError


def percent(done: int, total: int, *, complete: bool = False) -> int:
    """Whole percent, rounded down; 100 only when ``complete``."""
    if complete:
        return 100
    return min(99, done * 100 // total) if total > 0 else 0
