"""Amounts as people and batch systems write them on a command line."""

from __future__ import annotations

import re

import click

_FACTORS = {
    "": 1 << 20,
    "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4,
    "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40,
}  # fmt: skip
"""Grid Engine's: small letters are powers of 1000, capitals of 1024 (complex(5))."""


class _Memory(click.ParamType[int]):
    """MiB, as a number; or with a letter: ``2g`` is 2 x 1000^3 bytes, ``2G`` is 2 x 1024^3."""

    name = "size"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """MiB, rounded down."""
        match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)([kmgtKMGT]?)", str(value))
        if match is None:
            self.fail(f"{value}: not a size, write 2048 (MiB), 2G or 2g", param, ctx)
        return int(float(match[1]) * _FACTORS[match[2]]) >> 20


class _Time(click.ParamType[float]):
    """Seconds, or ``H:M:S``."""

    name = "time"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Seconds."""
        text = str(value)
        if re.fullmatch(r"\d{1,9}(\.\d{1,6})?", text):
            seconds = float(text)
        elif re.fullmatch(r"\d{1,6}:\d{1,2}:\d{1,2}", text):
            hours, minutes, rest = (int(part) for part in text.split(":"))
            seconds = float(hours * 3600 + minutes * 60 + rest)
        else:
            self.fail(f"{value}: not a time, write seconds or H:M:S", param, ctx)
        if seconds <= 0:
            self.fail(f"{value}: a time must be more than 0", param, ctx)
        return seconds


MEMORY = _Memory()
TIME = _Time()
