"""The HEPiX image list: JSON in, frozen dataclasses out, and back.

Format: hepix-virtualisation/hepixvmitrust (README.md, vmitrustlib.py), with what vmcaster and EGI's
AppDB made of it: sizes as numbers or strings, keys of their own (kept in ``extra``), an expiry per
image. The root key ``hv:imagelist`` may be missing (the older, bare form). Required is what trust
or use stands on; texts that only describe may be absent.

This module says whether a list is *well formed*. Whether it may be believed is for ``verify``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from distrib.errors import TrustRefused
from distrib.trust.jsontext import MAX_CONTENT_BYTES, Json, JsonRefused, load_json, render_json
from distrib.trust.reasons import Reason, ReasonCode

__all__ = [
    "MAX_CONTENT_BYTES",
    "Endorser",
    "FieldReader",
    "Image",
    "ImageList",
    "ImageListInvalid",
    "format_time",
    "parse_image_list",
    "parse_time",
    "render_image_list",
    "version_key",
]

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_MAX_INT = 2**63 - 1
_MAX_TEXT_CHARS = 64 * 1024
_MAX_REASONS = 200


class ImageListInvalid(TrustRefused):
    """The content is no well-formed list. ``found`` are all faults."""

    def __init__(self, found: Iterable[Reason]) -> None:
        self.found = tuple(found)
        super().__init__(
            "image list refused: " + "; ".join(str(reason) for reason in self.found),
            reasons=tuple(reason.as_dict() for reason in self.found),
            hint="the endorser has to mend the list and sign it again",
        )


@dataclass(frozen=True, slots=True)
class Endorser:
    """``hv:endorser``: who the list says has signed it. ``dn`` and ``ca`` are in slash form."""

    dn: str
    ca: str
    email: str = ""
    creator: str = ""
    extra: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Image:
    """One ``hv:image``. ``size_bytes`` and ``sha512`` speak of the file as downloaded."""

    identifier: str
    version: str
    uri: str
    size_bytes: int
    sha512: str
    title: str = ""
    description: str = ""
    hypervisor: str = ""
    arch: str = ""
    os: str = ""
    os_version: str = ""
    comments: str = ""
    format: str | None = None
    expires: datetime | None = None
    extra: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageList:
    """One list. Times are aware, in UTC; ``identifier`` is a lowercase UUID."""

    identifier: str
    version: str
    created: datetime
    expires: datetime
    endorser: Endorser
    images: tuple[Image, ...]
    title: str = ""
    description: str = ""
    source: str = ""
    uri: str = ""
    extra: Mapping[str, Json] = field(default_factory=dict)


_LIST_TEXTS = {
    "title": "dc:title",
    "description": "dc:description",
    "source": "dc:source",
    "uri": "hv:uri",
}
_IMAGE_TEXTS = {
    "title": "dc:title",
    "description": "dc:description",
    "hypervisor": "hv:hypervisor",
    "arch": "sl:arch",
    "os": "sl:os",
    "os_version": "sl:osversion",
    "comments": "sl:comments",
}
_ENDORSER_TEXTS = {"email": "hv:email", "creator": "dc:creator"}
_MULTILINE = {"dc:description", "sl:comments"}


def version_key(version: str) -> tuple[tuple[int, int, str], ...]:
    """What versions are compared by: parts between ``- , . /``, numbers as numbers and below texts.

    The rule is vmcatcher's; ``1.10`` is above ``1.9``, and ``1.0.0`` above ``1.0``.
    """
    return tuple(
        (0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part)
        for part in re.split(r"[-,./]", version)
    )


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
        if isinstance(value, int) and not isinstance(value, bool):
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


def parse_image_list(content: bytes) -> ImageList:
    """The list in ``content`` (UTF-8 JSON, at most 8 MiB); else ``ImageListInvalid``, all faults.

    An image UUID may occur several times here: whether it may is a rule of the profile
    (``verify``).
    """
    try:
        document = load_json(content)
    except JsonRefused as error:
        raise ImageListInvalid([error.reason]) from None
    faults: list[Reason] = []
    if isinstance(document, dict) and "hv:imagelist" in document:
        document = document["hv:imagelist"]
    parsed = _read_list(FieldReader(document, "list", faults))
    if parsed is None or faults:
        raise ImageListInvalid(faults)
    return parsed


def _read_list(reader: FieldReader) -> ImageList | None:
    created, expires = reader.time("dc:date:created"), reader.time("dc:date:expires")
    if created and expires and expires <= created:
        reader.fault(ReasonCode.FIELD_INVALID, "dc:date:expires", "is not after dc:date:created")
    identifier, version = reader.uuid("dc:identifier"), reader.version("hv:version")
    texts = {name: reader.text(key, required=False) for name, key in _LIST_TEXTS.items()}
    wrapped = FieldReader(reader.take("hv:endorser"), "hv:endorser", reader.faults)
    endorser = _read_endorser(FieldReader(wrapped.take("hv:x509"), "hv:x509", reader.faults))
    images = []
    for number, entry in enumerate(reader.array("hv:images")):
        holder = FieldReader(entry, f"image {number}", reader.faults)
        images.append(
            _read_image(FieldReader(holder.take("hv:image"), holder.where, reader.faults))
        )
    if created is None or expires is None:
        return None
    return ImageList(
        identifier=identifier,
        version=version,
        created=created,
        expires=expires,
        endorser=endorser,
        images=tuple(images),
        extra=reader.rest(),
        **texts,
    )


def _read_endorser(reader: FieldReader) -> Endorser:
    dn, ca = reader.text("hv:dn"), reader.text("hv:ca")
    texts = {name: reader.text(key, required=False) for name, key in _ENDORSER_TEXTS.items()}
    return Endorser(dn=dn, ca=ca, extra=reader.rest(), **texts)


def _read_image(reader: FieldReader) -> Image:
    identifier = reader.uuid("dc:identifier")
    if identifier:
        reader.where = f"image {identifier}"
    texts = {name: reader.text(key, required=False) for name, key in _IMAGE_TEXTS.items()}
    return Image(
        identifier=identifier,
        version=reader.version("hv:version"),
        uri=reader.text("hv:uri"),
        size_bytes=reader.size("hv:size"),
        sha512=reader.hexadecimal("sl:checksum:sha512", 128),
        format=reader.text("hv:format", required=False) or None,
        expires=reader.time("dc:date:expires", required=False),
        extra=reader.rest(),
        **texts,
    )


def render_image_list(image_list: ImageList) -> bytes:
    """The list as JSON, sorted keys and indent 4, as the field's tools write it; with ``extra``."""
    endorser = image_list.endorser
    x509 = dict(endorser.extra) | {"hv:dn": endorser.dn, "hv:ca": endorser.ca}
    x509 |= {key: getattr(endorser, name) for name, key in _ENDORSER_TEXTS.items()}
    document: dict[str, Json] = dict(image_list.extra) | {
        "dc:identifier": image_list.identifier,
        "dc:date:created": format_time(image_list.created),
        "dc:date:expires": format_time(image_list.expires),
        "hv:version": image_list.version,
        "hv:endorser": {"hv:x509": x509},
        "hv:images": [{"hv:image": _image_object(image)} for image in image_list.images],
    }
    document |= {key: getattr(image_list, name) for name, key in _LIST_TEXTS.items()}
    return render_json({"hv:imagelist": document})


def _image_object(image: Image) -> dict[str, Json]:
    document: dict[str, Json] = dict(image.extra) | {
        "dc:identifier": image.identifier,
        "hv:version": image.version,
        "hv:uri": image.uri,
        "hv:size": image.size_bytes,
        "sl:checksum:sha512": image.sha512,
    }
    document |= {key: getattr(image, name) for name, key in _IMAGE_TEXTS.items()}
    if image.format is not None:
        document["hv:format"] = image.format
    if image.expires is not None:
        document["dc:date:expires"] = format_time(image.expires)
    return document
