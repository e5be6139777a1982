"""The entries of a site list: approved image versions, and the keys that may sign orders.

Typed views of the keys ``distrib:*`` (docs/formats/site-list.md), read from and written to the
HEPiX objects that carry them.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from distrib.errors import OperatorError
from distrib.trust.envelope import key_id
from distrib.trust.fields import FieldReader, format_time
from distrib.trust.imagelist import Image
from distrib.trust.jsontext import Json
from distrib.trust.reasons import Reason, ReasonCode

MIN_PIECE_BYTES = 16 * 1024

ImageState = Literal["approved", "superseded"]
Audience = Literal["all"] | tuple[str, ...]

ALIAS_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
_UUID_LIKE = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_USER_PATTERN = r"[^\s:/\x00-\x1f\x7f]{1,64}"


@dataclass(frozen=True, slots=True)
class ControllerKey:
    """A key that may sign orders: ``identifier`` is ``envelope.key_id`` of the raw public key."""

    identifier: str
    raw: bytes

    @classmethod
    def of(cls, public_key: Ed25519PublicKey) -> ControllerKey:
        """The entry of a public key."""
        return cls(key_id(public_key), public_key.public_bytes_raw())

    @property
    def public_key(self) -> Ed25519PublicKey:
        """The key as ``cryptography`` has it."""
        return Ed25519PublicKey.from_public_bytes(self.raw)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an approval came from: the endorser's list, and the file as endorsed.

    ``proposed_by``: the user of the site who brought it; then no endorser stands for it.
    """

    list: str
    list_version: str
    endorser_dn: str
    endorser_ca: str
    sha512: str
    size_bytes: int
    proposed_by: str = ""


@dataclass(frozen=True, slots=True)
class SiteImage:
    """One approved image version.

    ``image`` is the endorser's entry (its size and SHA-512 are of the file as downloaded); the
    fields here are of the raw bytes that nodes hold. ``infohash``: v2, 64 hex digits. ``audience``:
    ``"all"`` or users.
    """

    image: Image
    infohash: str
    size_bytes: int
    piece_bytes: int
    sha512: str
    origin: Origin
    format: str = "raw"
    state: ImageState = "approved"
    until: datetime | None = None
    aliases: tuple[str, ...] = ()
    audience: Audience = "all"

    @property
    def identifier(self) -> str:
        """The image's UUID, in lowercase."""
        return self.image.identifier

    @property
    def version(self) -> str:
        """The image's ``hv:version``."""
        return self.image.version

    @property
    def title(self) -> str:
        """The endorser's title."""
        return self.image.title

    @property
    def ref(self) -> str:
        """``UUID@VERSION``: what names this version everywhere."""
        return f"{self.identifier}@{self.version}"

    @property
    def is_for_all(self) -> bool:
        """Whether the site lets everybody run it: only then may it have more than a private
        network, and the site's part of the context disc."""
        return self.audience == "all"

    def admits(self, user: str) -> bool:
        """Whether ``user`` belongs to the audience."""
        return self.audience == "all" or user in self.audience


def read_site_image(image: Image, faults: list[Reason]) -> SiteImage:
    """The typed entry; its faults go to ``faults``, and then the entry is not to be used."""
    reader = FieldReader(dict(image.extra), f"image {image.identifier}", faults)
    piece_bytes = reader.size("distrib:piece_bytes")
    if piece_bytes and (piece_bytes < MIN_PIECE_BYTES or piece_bytes & (piece_bytes - 1)):
        reader.fault(
            ReasonCode.FIELD_INVALID, "distrib:piece_bytes", "is not a power of two from 16384 on"
        )
    entry = SiteImage(
        image=image,
        infohash=reader.hexadecimal("distrib:infohash", 64),
        size_bytes=reader.size("distrib:size_bytes"),
        piece_bytes=piece_bytes,
        format=reader.text("distrib:format", pattern="raw"),
        sha512=reader.hexadecimal("distrib:sha512", 128),
        state=cast(ImageState, reader.text("distrib:state", pattern="approved|superseded")),
        until=reader.time("distrib:until", required=False),
        aliases=_read_names(reader, "distrib:aliases", ALIAS_PATTERN),
        audience=_read_audience(reader),
        origin=_read_origin(reader.nested("distrib:origin", f"{reader.where}: distrib:origin")),
    )
    return replace(entry, image=replace(image, extra=reader.rest()))


def image_with_site_keys(entry: SiteImage) -> Image:
    """The image as the list carries it, the keys ``distrib:*`` among its ``extra``."""
    origin = entry.origin
    keys: dict[str, Json] = {
        "distrib:infohash": entry.infohash,
        "distrib:size_bytes": entry.size_bytes,
        "distrib:piece_bytes": entry.piece_bytes,
        "distrib:format": entry.format,
        "distrib:sha512": entry.sha512,
        "distrib:state": entry.state,
        "distrib:aliases": list(entry.aliases),
        "distrib:audience": entry.audience if entry.audience == "all" else list(entry.audience),
        "distrib:origin": {
            "list": origin.list,
            "list_version": origin.list_version,
            "endorser_dn": origin.endorser_dn,
            "endorser_ca": origin.endorser_ca,
            "sha512": origin.sha512,
            "size_bytes": origin.size_bytes,
        },
    }
    if origin.proposed_by:
        keys["distrib:origin"] = {
            **cast(dict[str, Json], keys["distrib:origin"]),
            "proposed_by": origin.proposed_by,
        }
    if entry.until is not None:
        keys["distrib:until"] = format_time(entry.until)
    # An endorser's own list may carry such keys too; what the site says is the site's alone.
    endorsed = {
        key: value for key, value in entry.image.extra.items() if not key.startswith("distrib:")
    }
    return replace(entry.image, extra=endorsed | keys)


def read_controller_key(value: Json, faults: list[Reason]) -> ControllerKey:
    """One entry of ``distrib:controller_keys``; its id must be the key's own."""
    reader = FieldReader(value, "distrib:controller_keys", faults)
    identifier = reader.text("id", pattern=r"[0-9a-f]{16}")
    encoded = reader.text("ed25519")
    try:
        raw = base64.b64decode(encoded, validate=True)
        public_key = Ed25519PublicKey.from_public_bytes(raw)
    except (binascii.Error, ValueError):
        reader.fault(ReasonCode.FIELD_INVALID, "ed25519", "is not 32 bytes in base64")
        return ControllerKey(identifier, b"")
    if identifier and key_id(public_key) != identifier:
        text = f"{identifier} is not the id of this key ({key_id(public_key)})"
        reader.fault(ReasonCode.FIELD_INVALID, "id", text)
    return ControllerKey(identifier, raw)


def controller_key_object(key: ControllerKey) -> Json:
    """The key as the list carries it."""
    return {"id": key.identifier, "ed25519": base64.b64encode(key.raw).decode("ascii")}


def check_alias(alias: str) -> str:
    """The alias; OperatorError if it is none (a UUID is none: it would hide an image)."""
    if re.fullmatch(ALIAS_PATTERN, alias) is None or _UUID_LIKE.fullmatch(alias) is not None:
        raise OperatorError(
            f"{alias[:80]!r} cannot be an alias",
            hint="letters, digits, dot, dash and underscore, at most 63, and no UUID",
        )
    return alias


def check_aliases(images: Iterable[SiteImage], faults: list[Reason]) -> None:
    """An alias names one image: it occurs once in a list, and does not look like a UUID."""
    owners: dict[str, str] = {}
    for entry in images:
        for alias in entry.aliases:
            if alias in owners:
                text = f"alias {alias!r} is on {owners[alias]} and on {entry.ref}"
                faults.append(Reason(ReasonCode.FIELD_INVALID, text))
            if _UUID_LIKE.fullmatch(alias):
                text = f"alias {alias!r} looks like a UUID"
                faults.append(Reason(ReasonCode.FIELD_INVALID, text))
            owners[alias] = entry.ref


def check_infohashes(images: Iterable[SiteImage], faults: list[Reason]) -> None:
    """An info-hash occurs once in a list: nodes keep one volume per info-hash."""
    owners: dict[str, str] = {}
    for entry in images:
        if entry.infohash and entry.infohash in owners:
            text = f"info-hash {entry.infohash} is on {owners[entry.infohash]} and on {entry.ref}"
            faults.append(Reason(ReasonCode.FIELD_INVALID, text))
        owners[entry.infohash] = entry.ref


def _read_names(reader: FieldReader, key: str, pattern: str) -> tuple[str, ...]:
    names = []
    for value in reader.array(key) if reader.has(key) else []:
        if isinstance(value, str) and re.fullmatch(pattern, value):
            names.append(value)
        else:
            reader.fault(ReasonCode.FIELD_INVALID, key, f"has {str(value)[:60]!r}, no name")
    return tuple(names)


def _read_audience(reader: FieldReader) -> Audience:
    if reader.take("distrib:audience") == "all":
        return "all"
    return _read_names(reader, "distrib:audience", _USER_PATTERN)


def _read_origin(reader: FieldReader) -> Origin:
    return Origin(
        list=reader.uuid("list"),
        list_version=reader.version("list_version"),
        endorser_dn=reader.text("endorser_dn"),
        endorser_ca=reader.text("endorser_ca"),
        sha512=reader.hexadecimal("sha512", 128),
        size_bytes=reader.size("size_bytes"),
        proposed_by=reader.text("proposed_by", required=False, pattern=_USER_PATTERN),
    )
