"""JSON from strangers: bounded in size and depth before it is parsed, one meaning only.

Repeated keys, ``NaN`` and lone surrogates are refused: two readers could take them differently, and
what a person checked would not be what a program does.
"""

from __future__ import annotations

import json
import math
import re
from typing import TypeAlias

from distrib.trust.reasons import Reason, ReasonCode

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

MAX_CONTENT_BYTES = 8 * 1024 * 1024
MAX_DEPTH = 32
# A value takes some hundred bytes of memory, and "[]," is three. AppDB's lists have 40 keys an
# image: this is more than 10 000 images.
_MAX_VALUES = 512 * 1024
_MAX_QUOTES = 4 * _MAX_VALUES

# The closing quote is optional and the repeats possessive: linear also on a string that never ends.
_STRING_OR_BRACKET = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)


class JsonRefused(ValueError):
    """The bytes are not JSON that is read here; ``reason`` says why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(str(reason))
        self.reason = reason


def load_json(
    content: bytes, *, max_bytes: int = MAX_CONTENT_BYTES, max_depth: int = MAX_DEPTH
) -> Json:
    """The value; ``JsonRefused`` if it is too large, too deep, ambiguous or no JSON."""
    if len(content) > max_bytes:
        text = f"{len(content)} bytes of content, at most {max_bytes} are read"
        raise JsonRefused(Reason(ReasonCode.TOO_LARGE, text))
    if sum(map(content.count, (b",", b"[", b"{"))) > _MAX_VALUES or (
        content.count(b'"') > _MAX_QUOTES
    ):
        raise JsonRefused(
            Reason(ReasonCode.TOO_LARGE, f"more than {_MAX_VALUES} values in the content")
        )
    if _is_deeper(content, max_depth):
        raise _malformed(f"nested deeper than {max_depth}")
    try:
        text = content.decode("utf-8")
        value: Json = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
        )
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise _malformed(f"not JSON: {error}"[:300]) from None
    return value


def render_json(value: Json) -> bytes:
    """UTF-8 JSON with sorted keys, indent 4 and a line break at the end."""
    return json.dumps(value, sort_keys=True, indent=4).encode("utf-8") + b"\n"


def _malformed(text: str) -> JsonRefused:
    return JsonRefused(Reason(ReasonCode.MESSAGE_MALFORMED, f"the content is {text}"))


def _is_deeper(content: bytes, max_depth: int) -> bool:
    """Whether it is nested too deep; the parser recurses, so this is known before it runs."""
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(content):
        if match[0] in b"[{":
            depth += 1
            if depth > max_depth:
                return True
        elif match[0] in b"]}":
            depth -= 1
    return False


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return value


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is too large")
    return value


def _no_constant(name: str) -> Json:
    raise ValueError(f"{name} is no JSON")
