"""ClassAds in the old syntax: one ``Name = value`` a line, as hooks exchange them. Pure.

Only literals are read: strings, integers, booleans; an expression is None, since what it means
depends on another ad.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

Value = str | int | bool

_LINE = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*=(?![=?!])\s*(.*?)\s*")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


def parse(text: str) -> dict[str, Value | None]:
    """The attributes of an ad, by their names in small letters: ClassAds do not tell case."""
    found: dict[str, Value | None] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match:
            found[match[1].lower()] = _value(match[2])
    return found


def dump(attributes: Mapping[str, Value]) -> list[str]:
    """Lines of an ad."""
    return [f"{name} = {_literal(value)}" for name, value in attributes.items()]


def _value(text: str) -> Value | None:
    if match := _STRING.fullmatch(text):
        return re.sub(r"\\(.)", lambda one: _ESCAPES.get(one[1], one[1]), match[1])
    if re.fullmatch(r"-?\d{1,18}", text):
        return int(text)
    return {"true": True, "false": False}.get(text.lower())


def _literal(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    clean = " ".join(value.split()).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{clean}"'
