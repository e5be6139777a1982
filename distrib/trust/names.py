"""Distinguished names: OpenSSL's one-line slash form, RFC 4514 and ``x509.Name``, as one thing.

Image lists write ``/DC=org/O=Grid/CN=Jane/emailAddress=jane@example.org`` (root first), RFC 4514
writes ``E=jane@example.org,CN=Jane,O=Grid,DC=org`` (root last). A name here is its attributes, root
first, with the type's aliases folded to OpenSSL's short name. Values are compared exactly, case
included: what a list states was copied from the certificate.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cryptography import x509

#: OpenSSL's short name (or long, where ``X509_NAME_oneline`` prints that) of each attribute type.
_SHORT_NAMES = {
    "2.5.4.3": "CN",
    "2.5.4.4": "SN",
    "2.5.4.5": "serialNumber",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.9": "street",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "2.5.4.12": "title",
    "2.5.4.13": "description",
    "2.5.4.15": "businessCategory",
    "2.5.4.17": "postalCode",
    "2.5.4.41": "name",
    "2.5.4.42": "GN",
    "2.5.4.43": "initials",
    "2.5.4.44": "generationQualifier",
    "2.5.4.45": "x500UniqueIdentifier",
    "2.5.4.46": "dnQualifier",
    "2.5.4.65": "pseudonym",
    "2.5.4.97": "organizationIdentifier",
    "0.9.2342.19200300.100.1.1": "UID",
    "0.9.2342.19200300.100.1.25": "DC",
    "1.2.840.113549.1.9.1": "emailAddress",
    "1.2.840.113549.1.9.2": "unstructuredName",
}
_ALIASES = {short.lower(): short for short in _SHORT_NAMES.values()} | {
    "commonname": "CN",
    "surname": "SN",
    "countryname": "C",
    "localityname": "L",
    "s": "ST",
    "sp": "ST",
    "stateorprovincename": "ST",
    "streetaddress": "street",
    "organizationname": "O",
    "organizationalunitname": "OU",
    "givenname": "GN",
    "userid": "UID",
    "domaincomponent": "DC",
    "e": "emailAddress",
    "email": "emailAddress",
}
_TYPE = "|".join(sorted(_ALIASES, key=len, reverse=True)) + r"|\d+(?:\.\d+)+"
# A host's certificate may be "/CN=host/wn1.example.org": a slash parts only where a type and "="
# follow.
_SLASH_PART = re.compile(rf"(?<!\\)[/+](?=(?:{_TYPE})=)", re.IGNORECASE)
# The same, whatever stands before it.
_SLASH_LIKE = re.compile(rf"[/+](?=(?:{_TYPE})=)", re.IGNORECASE)
_ESCAPED_BYTES = re.compile(r"(?:\\x[0-9A-Fa-f]{2})+")
_MAX_CHARS = 2048


@dataclass(frozen=True, slots=True)
class DistinguishedName:
    """A name as (type, value) pairs, root first, types as OpenSSL's short names."""

    attributes: tuple[tuple[str, str], ...]

    @classmethod
    def from_x509(cls, name: x509.Name) -> DistinguishedName:
        """The name of a certificate's subject or issuer."""
        pairs = []
        for attribute in name:
            value = attribute.value
            oid = attribute.oid.dotted_string
            text = value if isinstance(value, str) else "#" + bytes(value).hex()
            pairs.append((_SHORT_NAMES.get(oid, oid), text))
        return cls(tuple(pairs))

    @classmethod
    def parse(cls, text: str) -> DistinguishedName:
        """A name from its slash form (it starts with ``/``) or RFC 4514; else ``ValueError``."""
        if len(text) > _MAX_CHARS:
            raise ValueError(f"a name of {len(text)} characters is too long")
        stripped = text.strip()
        pairs = _parse_slash(stripped) if stripped.startswith("/") else _parse_rfc4514(stripped)
        if not pairs:
            raise ValueError(f"{text!r} is not a distinguished name")
        return cls(tuple(pairs))

    def slash(self) -> str:
        """OpenSSL's one-line form, as image lists carry it."""
        text = "".join(f"/{kind}={_escape_slash(value)}" for kind, value in self.attributes)
        # Readers strip what they are given: the blank is a part of the name all the same.
        return text[:-1] + "\\x20" if text.endswith(" ") else text

    def flat(self) -> str:
        """The form that patterns of policies are held against: only separators are slashes there.

        A slash or plus in a value that would read as the start of an attribute is ``\\x00`` here:
        a CN cannot fake the O that a policy asks for. Neither can one that is written as bytes.
        """
        return "".join(
            f"/{kind}={_escape_chars(_SLASH_LIKE.sub(chr(0), _escape_backslash(value)))}"
            for kind, value in self.attributes
        )

    def rfc4514(self) -> str:
        """RFC 4514, most specific attribute first."""
        return ",".join(
            f"{kind}={_escape_rfc4514(value)}" for kind, value in reversed(self.attributes)
        )

    def __str__(self) -> str:
        return self.slash()


def fold_types(pattern: str) -> str:
    """A pattern in slash form with the spellings of ``flat``: types, and bytes beyond ASCII."""
    folded = _SLASH_PART.sub("/", pattern) if "+" in pattern else pattern
    folded = re.sub(
        rf"/({_TYPE})=", lambda match: f"/{_short(match[1])}=", folded, flags=re.IGNORECASE
    )
    folded = _escape_chars(folded)
    return re.sub(r"\\x[0-9A-Fa-f]{2}", lambda match: "\\x" + match[0][2:].upper(), folded)


def slash_form(name: x509.Name) -> str:
    """A certificate's name in slash form."""
    return DistinguishedName.from_x509(name).slash()


def same_name(one: str | x509.Name, other: str | x509.Name) -> bool:
    """Whether two names, in whatever form, are the same; False if either is no name."""
    try:
        return _as_name(one) == _as_name(other)
    except ValueError:
        return False


def _as_name(name: str | x509.Name) -> DistinguishedName:
    if isinstance(name, x509.Name):
        return DistinguishedName.from_x509(name)
    return DistinguishedName.parse(name)


def _short(kind: str) -> str:
    kind = kind.strip()
    if kind[:1].isdigit():
        return _SHORT_NAMES.get(kind, kind)
    try:
        return _ALIASES[kind.lower()]
    except KeyError:
        raise ValueError(f"unknown attribute type {kind!r} in a distinguished name") from None


def _parse_slash(text: str) -> list[tuple[str, str]]:
    parts = _SLASH_PART.split(text)
    if parts[0]:
        raise ValueError(f"{text!r} does not begin with an attribute")
    pairs = []
    for part in parts[1:]:
        kind, _, value = part.partition("=")
        pairs.append((_short(kind), _unescape_slash(value)))
    return pairs


def _unescape_slash(value: str) -> str:
    def decode(match: re.Match[str]) -> str:
        return bytes.fromhex(match[0].replace("\\x", "")).decode("utf-8", "surrogateescape")

    # OpenSSL 3 writes "\/" and "\+" inside a value, older ones the bare character.
    return _ESCAPED_BYTES.sub(decode, re.sub(r"\\([/+])", r"\1", value))


def _escape_slash(value: str) -> str:
    # A value that reads like further attributes, or like an escaped one, is written so that it
    # cannot be taken for that.
    plain = _escape_backslash(value)
    return _escape_chars(_SLASH_PART.sub(lambda match: "\\" + match[0], plain))


def _escape_backslash(value: str) -> str:
    return value.replace("\\", "\\x5C")


def _escape_chars(text: str) -> str:
    """Whatever is not printable ASCII as ``\\xHH`` of its UTF-8 bytes."""
    return "".join(
        char
        if " " <= char <= "~"
        else "".join(f"\\x{byte:02X}" for byte in char.encode("utf-8", "surrogateescape"))
        for char in text
    )


def _parse_rfc4514(text: str) -> list[tuple[str, str]]:
    pairs = []
    for part in _split_unescaped(text):
        kind, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"{part!r} in {text!r} is not TYPE=VALUE")
        pairs.append((_short(kind), _unescape_rfc4514(value)))
    return pairs[::-1]


def _split_unescaped(text: str) -> list[str]:
    parts, current, escaped = [], "", False
    for char in text:
        if not escaped and char in ",+":
            parts.append(current)
            current = ""
            continue
        escaped = not escaped and char == "\\"
        current += char
    return [*parts, current]


def _unescape_rfc4514(value: str) -> str:
    value = value.lstrip()
    tail = len(value) - len(value.rstrip())
    if tail and not value.rstrip().endswith("\\"):
        value = value.rstrip()

    def decode(match: re.Match[str]) -> str:
        if match[1] is not None:
            return bytes.fromhex(match[0].replace("\\", "")).decode("utf-8", "surrogateescape")
        return match[2]

    return re.sub(r"((?:\\[0-9A-Fa-f]{2})+)|\\(.)", decode, value, flags=re.DOTALL)


def _escape_rfc4514(value: str) -> str:
    value = re.sub(r'([,+"\\<>;=])', r"\\\1", value)
    if value.startswith((" ", "#")):
        value = "\\" + value
    if value.endswith(" ") and not value.endswith("\\ "):
        value = value[:-1] + "\\ "
    return value
