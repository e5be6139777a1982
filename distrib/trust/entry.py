"""An entry of StratusLab's Marketplace: RDF/XML in, a frozen dataclass out.

Format: docs/formats/marketplace.md, after StratusLab/metadata. RDF allows many ways to write the
same; read is the one in which entries are written. Whether an entry may be believed is for
``marketplace``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from distrib.trust.fields import parse_time
from distrib.trust.reasons import Reason, ReasonCode
from distrib.trust.xmltext import Element

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
DCTERMS = "{http://purl.org/dc/terms/}"
SLREQ = "{http://mp.stratuslab.eu/slreq#}"
SLTERMS = "{http://mp.stratuslab.eu/slterms#}"

#: Hex digits of each digest that a checksum may be of.
CHECKSUM_DIGITS = {"MD5": 32, "SHA-1": 40, "SHA-256": 64, "SHA-512": 128}
IDENTIFIER_DIGITS = 27

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_VALUES = {digit: value for value, digit in enumerate(_ALPHABET)}
_IDENTIFIER = re.compile(rf"[A-Za-z0-9_-]{{{IDENTIFIER_DIGITS}}}")
_MAX_BYTES = 2**63 - 1
_MAX_TEXT_CHARS = 64 * 1024
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_PREFIXES = {RDF: "rdf:", DCTERMS: "dcterms:", SLREQ: "slreq:", SLTERMS: "slterms:"}
_TEXTS = {
    "title": f"{DCTERMS}title",
    "description": f"{DCTERMS}description",
    "type": f"{DCTERMS}type",
    "format": f"{DCTERMS}format",
    "publisher": f"{DCTERMS}publisher",
    "creator": f"{DCTERMS}creator",
    "version": f"{SLTERMS}version",
    "hypervisor": f"{SLTERMS}hypervisor",
    "os": f"{SLTERMS}os",
    "os_version": f"{SLTERMS}os-version",
    "arch": f"{SLTERMS}os-arch",
}


@dataclass(frozen=True, slots=True)
class EntryEndorser:
    """Who the entry says has endorsed it; ``subject`` and ``issuer`` as written, mostly RFC 4514.

    ``email`` is a claim until the signer's certificate bears it.
    """

    email: str
    subject: str
    issuer: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. ``checksums`` (lowercase hex) and ``size_bytes`` are of the file as downloaded.

    ``identifier`` is the SHA-1 of the image in 27 digits; ``expires`` is ``dcterms:valid``, None
    where there is none; ``deprecated`` is the reason that its endorser gives, None where it stands;
    ``extra`` are the other elements, in order.
    """

    identifier: str
    size_bytes: int
    checksums: Mapping[str, str]
    endorser: EntryEndorser
    created: datetime
    expires: datetime | None = None
    deprecated: str | None = None
    locations: tuple[str, ...] = ()
    title: str = ""
    description: str = ""
    type: str = ""
    format: str = ""
    publisher: str = ""
    creator: str = ""
    version: str = ""
    hypervisor: str = ""
    os: str = ""
    os_version: str = ""
    arch: str = ""
    extra: tuple[tuple[str, str], ...] = field(default=())


def identifier_of(sha1: str) -> str:
    """The identifier of an image by its SHA-1 (hex): base64url digits of the number, 27 of them."""
    value, digits = int(sha1, 16), ""
    for _ in range(IDENTIFIER_DIGITS):
        value, digit = divmod(value, 64)
        digits = _ALPHABET[digit] + digits
    return digits


def sha1_of(identifier: str) -> str:
    """The SHA-1 (hex) in an identifier; ``ValueError`` if it is none."""
    if not _IDENTIFIER.fullmatch(identifier):
        raise ValueError(f"{identifier[:40]!r} is not {IDENTIFIER_DIGITS} base64url digits")
    value = 0
    for digit in identifier:
        value = value * 64 + _VALUES[digit]
    if value >= 2**160:
        raise ValueError(f"{identifier} is more than 160 bits")
    return f"{value:040x}"


def parse_entry(root: Element) -> tuple[Entry | None, tuple[Reason, ...]]:
    """The entry under ``root`` (``rdf:RDF``, without comments); or None, and every fault."""
    faults: list[Reason] = []
    descriptions = list(root.iterchildren(f"{RDF}Description"))
    if root.tag != f"{RDF}RDF" or len(descriptions) != 1:
        text = f"not rdf:RDF with one rdf:Description ({len(descriptions)} of them)"
        return None, (Reason(ReasonCode.MESSAGE_MALFORMED, f"the content is {text}"),)
    reader = _Reader(descriptions[0], faults)
    entry = _read(reader, descriptions[0].get(f"{RDF}about"))
    return (None if faults else entry), tuple(dict.fromkeys(faults))


def _read(reader: _Reader, about: str | None) -> Entry | None:
    identifier = _identifier(reader, about)
    size = reader.text(f"{SLREQ}bytes")
    if size and not (re.fullmatch(r"[0-9]{1,19}", size) and 0 < int(size) <= _MAX_BYTES):
        reader.fault(ReasonCode.FIELD_INVALID, f"{SLREQ}bytes", "is not a size in bytes")
        size = ""
    checksums = _checksums(reader, identifier)
    created, endorser = _endorsement(reader)
    expires = reader.time(f"{DCTERMS}valid", required=False)
    texts = {name: reader.text(tag, required=False) for name, tag in _TEXTS.items()}
    deprecated = reader.maybe(f"{SLTERMS}deprecated")
    locations = tuple(reader.every(f"{SLTERMS}location"))
    if created is None or endorser is None or not size:
        return None
    return Entry(
        identifier=identifier,
        size_bytes=int(size),
        checksums=checksums,
        endorser=endorser,
        created=created,
        expires=expires,
        deprecated=deprecated,
        locations=locations,
        extra=tuple(reader.rest()),
        **texts,
    )


def _identifier(reader: _Reader, about: str | None) -> str:
    identifier = reader.text(f"{DCTERMS}identifier")
    try:
        if identifier:
            sha1_of(identifier)
    except ValueError as error:
        reader.fault(ReasonCode.FIELD_INVALID, f"{DCTERMS}identifier", str(error))
    if about is None:
        reader.fault(ReasonCode.FIELD_MISSING, f"{RDF}about", "is missing")
    elif identifier and about != f"#{identifier}":
        text = f"is {about[:80]!r}, not '#' and the identifier"
        reader.fault(ReasonCode.FIELD_INVALID, f"{RDF}about", text)
    return identifier


def _checksums(reader: _Reader, identifier: str) -> dict[str, str]:
    tag, found = f"{SLREQ}checksum", {}
    blocks = reader.blocks(tag)
    for block in blocks:
        algorithm, value = block.text(f"{SLREQ}algorithm"), block.text(f"{SLREQ}value")
        digits = CHECKSUM_DIGITS.get(algorithm)
        if not algorithm or not value:
            continue
        # A leading zero too many is the same number; one of the field's own entries has it.
        number = value.lower().lstrip("0")
        if digits is None:
            reader.fault(ReasonCode.FIELD_INVALID, tag, f"is of {algorithm[:20]!r}")
        elif not re.fullmatch(rf"[0-9a-f]{{0,{digits}}}", number) or len(value) < digits:
            reader.fault(ReasonCode.FIELD_INVALID, tag, f"is no {algorithm}: {value[:40]!r}")
        elif algorithm in found:
            reader.fault(ReasonCode.FIELD_INVALID, tag, f"gives {algorithm} twice")
        else:
            found[algorithm] = number.zfill(digits)
    if "SHA-1" not in found:
        if not reader.faulty(tag):
            reader.fault(ReasonCode.FIELD_MISSING, tag, "has no SHA-1")
    elif _IDENTIFIER.fullmatch(identifier) and identifier_of(found["SHA-1"]) != identifier:
        text = f"gives SHA-1 {found['SHA-1']}, which is not the one that the identifier stands for"
        reader.fault(ReasonCode.FIELD_INVALID, tag, text)
    return found


def _endorsement(reader: _Reader) -> tuple[datetime | None, EntryEndorser | None]:
    block = reader.block(f"{SLREQ}endorsement")
    if block is None:
        return None, None
    created = block.time(f"{DCTERMS}created")
    holder = block.block(f"{SLREQ}endorser")
    if holder is None:
        return created, None
    email, subject, issuer = (
        holder.text(f"{SLREQ}{name}") for name in ("email", "subject", "issuer")
    )
    return created, EntryEndorser(email, subject, issuer)


class _Reader:
    """Reads the children of one element and gathers every fault."""

    def __init__(self, element: Element, faults: list[Reason], where: str = "") -> None:
        self._children: list[Element] = list(element)
        self._faults = faults
        self._where = where
        self._asked: set[str] = set()

    def fault(self, code: ReasonCode, tag: str, text: str) -> None:
        self._faults.append(Reason(code, f"{self._where}{_short(tag)} {text}"))

    def faulty(self, tag: str) -> bool:
        name = f"{self._where}{_short(tag)}"
        return any(each.message.startswith(name) for each in self._faults)

    def text(self, tag: str, *, required: bool = True) -> str:
        """The text of the one child of this name, without the white space around it."""
        value = self.maybe(tag)
        if required and not value:
            text = "is missing" if value is None else "is empty"
            if not self.faulty(tag):
                self.fault(ReasonCode.FIELD_MISSING, tag, text)
        return value or ""

    def maybe(self, tag: str) -> str | None:
        """The same; None where there is no such child."""
        found = self._find(tag)
        if len(found) > 1:
            self.fault(ReasonCode.FIELD_INVALID, tag, f"occurs {len(found)} times")
            return None
        return self._content(found[0], tag) if found else None

    def every(self, tag: str) -> list[str]:
        """The texts of all children of this name."""
        texts = [self._content(each, tag) for each in self._find(tag)]
        return [text for text in texts if text]

    def time(self, tag: str, *, required: bool = True) -> datetime | None:
        value = self.text(tag, required=required)
        if not value:
            return None
        try:
            return parse_time(value)
        except ValueError as error:
            self.fault(ReasonCode.FIELD_INVALID, tag, str(error)[:200])
            return None

    def blocks(self, tag: str) -> list[_Reader]:
        """Readers of the children of this name; that there is none is a fault."""
        found = self._find(tag)
        if not found:
            self.fault(ReasonCode.FIELD_MISSING, tag, "is missing")
        return [_Reader(each, self._faults, f"{self._where}{_short(tag)}: ") for each in found]

    def block(self, tag: str) -> _Reader | None:
        found = self.blocks(tag)
        if len(found) > 1:
            self.fault(ReasonCode.FIELD_INVALID, tag, f"occurs {len(found)} times")
        return found[0] if len(found) == 1 else None

    def rest(self) -> Iterator[tuple[str, str]]:
        """The children that nobody asked for, each with all its text."""
        for child in self._children:
            if child.tag not in self._asked:
                yield _short(child.tag), " ".join("".join(child.itertext()).split())

    def _find(self, tag: str) -> list[Element]:
        self._asked.add(tag)
        return [child for child in self._children if child.tag == tag]

    def _content(self, element: Element, tag: str) -> str:
        text = (element.text or "").strip()
        if len(element):
            self.fault(ReasonCode.FIELD_INVALID, tag, "is not a text")
            return ""
        if len(text) > _MAX_TEXT_CHARS or _CONTROL.search(text):
            self.fault(ReasonCode.FIELD_INVALID, tag, "has control characters or is too long")
            return ""
        return text


def _short(tag: str) -> str:
    """``slreq:bytes`` of the full tag."""
    for namespace, prefix in _PREFIXES.items():
        if tag.startswith(namespace):
            return prefix + tag.removeprefix(namespace)
    return tag[:120]
