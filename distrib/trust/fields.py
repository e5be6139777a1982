"""Typed fields of a JSON object from strangers: every fault is gathered, none raises."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime

from distrib.trust.jsontext import Json
from distrib.trust.reasons import Reason, ReasonCode

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_MULTILINE = frozenset({"dc:description", "sl:comments"})
_MAX_INT = 2**63 - 1
_MAX_TEXT_CHARS = 64 * 1024
_MAX_REASONS = 200


def parse_time(text: str) -> datetime:
    """``2026-03-01T12:00:00Z`` as an aware datetime; ``ValueError`` for any other form."""
    if not _TIME.fullmatch(text):
        raise ValueError(f"{text!r} is not a time like 2026-03-01T12:00:00Z")
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def format_time(time: datetime) -> str:
    """An aware datetime as ``2026-03-01T12:00:00Z``."""
    return f"{time.astimezone(UTC).replace(tzinfo=None, microsecond=0).isoformat()}Z"


class FieldReader:
    """Reads typed fields off one JSON object and gathers every fault, not the first only.

    A getter that finds a fault notes it and returns a placeholder; a caller that sees ``faults``
    builds nothing. Keys that nobody asked for are ``rest()``.
    """

    def __init__(self, value: Json, where: str, faults: list[Reason]) -> None:
        self.where = where
        self.faults = faults
        self._asked: set[str] = set()
        self._object: Mapping[str, Json] = {}
        if isinstance(value, dict):
            self._object = value
        else:
            self.fault(ReasonCode.FIELD_INVALID, "", "is not an object")
            # That was the fault: that its fields are missing too goes without saying.
            self.faults = []

    def nested(self, key: str, where: str = "") -> FieldReader:
        """A reader of the object under ``key``; where that is missing, only this is a fault."""
        value = self.take(key)
        if value is None:
            return FieldReader({}, where or key, [])
        return FieldReader(value, where or key, self.faults)

    def fault(self, code: ReasonCode, key: str, text: str) -> None:
        """Note that ``key`` of this object breaks a rule."""
        if len(self.faults) < _MAX_REASONS:
            where = f"{self.where}: {key}" if key else self.where
            self.faults.append(Reason(code, f"{where} {text}"))

    def has(self, key: str) -> bool:
        """Whether the object has the key at all."""
        return key in self._object

    def take(self, key: str, *, required: bool = True) -> Json:
        """The raw value; None, and ``field-missing`` noted if required, where there is none."""
        self._asked.add(key)
        value = self._object.get(key)
        if value is None and required:
            self.fault(ReasonCode.FIELD_MISSING, key, "is missing")
        return value

    def text(self, key: str, *, required: bool = True, pattern: str | None = None) -> str:
        """A text, without control characters (descriptions may have line breaks)."""
        value = self.take(key, required=required)
        if value is None:
            return ""
        if not isinstance(value, str):
            self.fault(ReasonCode.FIELD_INVALID, key, "is not a text")
            return ""
        bare = re.sub(r"[\r\n\t]", " ", value) if key in _MULTILINE else value
        if _CONTROL.search(bare) or len(value) > _MAX_TEXT_CHARS:
            self.fault(ReasonCode.FIELD_INVALID, key, "has control characters or is too long")
        elif required and not value.strip():
            self.fault(ReasonCode.FIELD_MISSING, key, "is empty")
        elif pattern is not None and not re.fullmatch(pattern, value):
            self.fault(
                ReasonCode.FIELD_INVALID, key, f"{value[:80]!r} is not of the form {pattern}"
            )
        return value

    def version(self, key: str) -> str:
        """A version, of at most 255 characters."""
        value = self.take(key, required=False)
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MAX_INT:
            return str(value)
        return self.text(key, pattern=r"(?s).{1,255}")

    def uuid(self, key: str) -> str:
        """An RFC 4122 UUID, in lowercase."""
        value = self.take(key)
        if value is None:
            return ""
        if not isinstance(value, str) or not _UUID.fullmatch(value):
            self.fault(ReasonCode.UUID_INVALID, key, f"{str(value)[:80]!r} is not a UUID")
            return ""
        return value.lower()

    def size(self, key: str) -> int:
        """A positive count of bytes, from a number or a text of digits (AppDB writes texts)."""
        value = self.take(key)
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,19}", value):
            value = int(value)
        if value is None:
            return 0
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MAX_INT:
            self.fault(ReasonCode.FIELD_INVALID, key, f"{str(value)[:80]!r} is not a size in bytes")
            return 0
        return value

    def time(self, key: str, *, required: bool = True) -> datetime | None:
        """A time in UTC, or None where it may be absent and is."""
        value = self.take(key, required=required)
        if value is None:
            return None
        try:
            return parse_time(value if isinstance(value, str) else repr(value))
        except ValueError as error:
            self.fault(ReasonCode.FIELD_INVALID, key, str(error)[:200])
            return None

    def hexadecimal(self, key: str, digits: int) -> str:
        """Hex digits, in lowercase."""
        return self.text(key, pattern=rf"[0-9a-fA-F]{{{digits}}}").lower()

    def array(self, key: str) -> list[Json]:
        """An array, maybe empty."""
        value = self.take(key)
        if value is not None and not isinstance(value, list):
            self.fault(ReasonCode.FIELD_INVALID, key, "is not an array")
        return value if isinstance(value, list) else []

    def rest(self) -> dict[str, Json]:
        """The keys that nobody asked for."""
        return {key: value for key, value in self._object.items() if key not in self._asked}
