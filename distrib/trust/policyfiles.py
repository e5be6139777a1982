"""The two formats of ``namespaces``: EACL (``signing_policy``) and EUGridPMA's ``namespaces``.

``signing_policy`` is Globus's EACL, as far as CAs are distributed with it::

    access_id_CA   X509    '/C=DE/O=GermanGrid/CN=GridKa-CA'
    pos_rights     globus  CA:sign
    cond_subjects  globus  '"/C=DE/O=GermanGrid/*" "/O=GermanGrid/*"'

``*`` is any text and ``?`` any character. ``namespaces`` (EUGridPMA, format 1.0)::

    TO Issuer "/C=DE/O=GermanGrid/CN=GridKa-CA" \\
      PERMIT Subject "/C=DE/O=GermanGrid/.*"

The issuer may be ``SELF``, the verb ``DENY``. Subjects are regular expressions by that format; what
CAs write is ``.*``. So in a PERMIT only ``.*`` is special (a dot in a name permits a dot, no more),
and a DENY that uses more of regular expressions than dots is refused rather than read too narrowly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from distrib.trust.names import DistinguishedName, fold_types
from distrib.trust.namespaces import (
    PolicyFile,
    PolicyKind,
    PolicyRule,
    SubjectPattern,
    Wildcard,
)

MAX_POLICY_BYTES = 256 * 1024
_MAX_PATTERN_CHARS = 1024
_MAX_RULES = 2000
_NAMESPACES_VERSION = "1.0"

_VERSION_LINE = re.compile(r"#NAMESPACES-VERSION:[ \t]*(\S*)[ \t]*")
_QUOTED = r'"((?:[^"\\]|\\.)*)"'
_ENTRY = re.compile(
    rf"TO\s+Issuer\s+(?:(SELF)|{_QUOTED})\s+(PERMIT|DENY)\s+Subject\s+{_QUOTED}", re.IGNORECASE
)
_EACL_LINE = re.compile(r"(\w+)[ \t]+(\w+)[ \t]+(\S.*)")
# As ``DistinguishedName.flat`` writes it.
_BACKSLASH = r"\x5C"
_DENIED_SYNTAX = frozenset("[](){}+?|^$*")


class PolicyUnreadable(ValueError):
    """The file does not follow its format, or goes beyond what is read here."""


def parse_policy(
    name: str, content: bytes, *, owners: frozenset[DistinguishedName] = frozenset()
) -> PolicyFile:
    """The policy file ``name`` (its suffix says the format). Never raises: see ``fault``."""
    kind = PolicyKind(name.rpartition(".")[2])
    try:
        if len(content) > MAX_POLICY_BYTES:
            raise PolicyUnreadable(f"larger than {MAX_POLICY_BYTES} bytes")
        # Comments are in whatever encoding; in names other bytes than UTF-8 stay what they are.
        text = content.decode("utf-8", "surrogateescape")
        read = _namespaces if kind is PolicyKind.NAMESPACES else _signing_policy
        rules = tuple(read(text))
        if not rules:
            raise PolicyUnreadable("it has no entry")
        if len(rules) > _MAX_RULES:
            raise PolicyUnreadable(f"more than {_MAX_RULES} rules")
    except ValueError as error:
        return PolicyFile(name, kind, fault=str(error)[:200], owners=owners)
    return PolicyFile(name, kind, rules=rules, owners=owners)


def _namespaces(text: str) -> Iterator[PolicyRule]:
    for entry in _logical_lines(text):
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise PolicyUnreadable(f"{entry[:80]!r} is no entry of a namespaces file")
        permits = match[3].upper() == "PERMIT"
        issuer = None if match[1] else DistinguishedName.parse(_unquote(match[2]))
        yield PolicyRule(issuer, permits, _expression(match[4], permits=permits))


def _logical_lines(text: str) -> Iterator[str]:
    pending = ""
    for line in text.splitlines():
        version = _VERSION_LINE.fullmatch(line)
        if version is not None and version[1] != _NAMESPACES_VERSION:
            raise PolicyUnreadable(f"format {version[1][:20]!r}, {_NAMESPACES_VERSION} is read")
        pending += _without_comment(line).strip()
        if pending.endswith("\\") and not pending.endswith("\\\\"):
            pending = pending[:-1] + " "
        elif pending.strip():
            yield pending.strip()
            pending = ""
    if pending.strip():
        raise PolicyUnreadable("the last line is continued, and nothing follows")


def _without_comment(line: str) -> str:
    """The line up to a ``#`` that is not escaped."""
    match = re.match(r"(?:[^#\\]|\\.|\\$)*", line, re.DOTALL)
    return match[0] if match else ""


def _unquote(text: str) -> str:
    return re.sub(r'\\(["#])', r"\1", text)


def _expression(quoted: str, *, permits: bool) -> SubjectPattern:
    text = fold_types(_unquote(quoted))
    _check_length(text)
    tokens: list[str | Wildcard] = []
    for match in re.finditer(r"(\\x[0-9A-F]{2})|\\(.)|(\.\*)|(.)", text, re.DOTALL):
        raw, escaped, anything, char = match.groups()
        if raw is not None:
            tokens += raw
        elif escaped is not None:
            tokens += _BACKSLASH if escaped == "\\" else escaped
        elif anything is not None:
            tokens.append(Wildcard.ANY_TEXT)
        elif char in _DENIED_SYNTAX and not permits:
            raise PolicyUnreadable(f"DENY {text[:80]!r}: only dots and .* are read there")
        elif char == "." and not permits:
            tokens.append(Wildcard.ANY_CHAR)
        else:
            tokens.append(char)
    return SubjectPattern(text, tuple(tokens))


def _signing_policy(text: str) -> Iterator[PolicyRule]:
    issuer: DistinguishedName | None = None
    may_sign = complete = False
    for line in text.splitlines():
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        match = _EACL_LINE.fullmatch(stripped)
        if match is None:
            raise PolicyUnreadable(f"{stripped[:80]!r} is no line of a signing policy")
        key, authority, value = match.groups()
        if key == "access_id_CA" and authority == "X509":
            if issuer is not None and not complete:
                raise PolicyUnreadable("an access_id_CA without cond_subjects")
            issuer = DistinguishedName.parse(_bare(value))
            may_sign = complete = False
        elif key == "pos_rights" and authority == "globus" and _bare(value) == "CA:sign":
            may_sign = True
        elif key == "cond_subjects" and authority == "globus" and issuer and may_sign:
            for pattern in _globs(value):
                yield PolicyRule(issuer, permits=True, subject=pattern)
            complete = True
        else:
            raise PolicyUnreadable(f"{stripped[:80]!r} is not read here, or out of place")
    if issuer is not None and not complete:
        raise PolicyUnreadable("an access_id_CA without cond_subjects")


def _bare(value: str) -> str:
    """A value without the quotes around all of it."""
    for quote in "'\"":
        if len(value) > 1 and value[0] == value[-1] == quote and quote not in value[1:-1]:
            return value[1:-1].strip()
    if "'" in value or '"' in value:
        raise PolicyUnreadable(f"{value[:80]!r} is not quoted as one value")
    return value


def _globs(value: str) -> Iterator[SubjectPattern]:
    if value.startswith("'"):
        inner = value[1:-1] if len(value) > 1 and value.endswith("'") else ""
        if "'" in inner or not inner.strip():
            raise PolicyUnreadable(f"{value[:80]!r} is not quoted as one value")
        value = inner.strip()
    if not value.startswith('"'):
        yield _glob(_bare(value))
        return
    if not re.fullmatch(r'"[^"]+"(?:\s+"[^"]+")*', value):
        raise PolicyUnreadable(f"{value[:80]!r} is no list of quoted subjects")
    for pattern in re.findall(r'"([^"]+)"', value):
        yield _glob(pattern.strip())


def _glob(pattern: str) -> SubjectPattern:
    text = fold_types(pattern)
    _check_length(text)
    text = re.sub(r"\\(?!x[0-9A-F]{2})", lambda _: _BACKSLASH, text)
    special = {"*": Wildcard.ANY_TEXT, "?": Wildcard.ANY_CHAR}
    return SubjectPattern(text, tuple(special.get(char, char) for char in text))


def _check_length(text: str) -> None:
    if not text or len(text) > _MAX_PATTERN_CHARS:
        raise PolicyUnreadable(f"a subject of {len(text)} characters")
