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
from datetime import datetime

from distrib.errors import TrustRefused
from distrib.trust.fields import FieldReader, format_time, parse_time
from distrib.trust.jsontext import MAX_CONTENT_BYTES, Json, JsonRefused, load_json, render_json
from distrib.trust.reasons import Reason, ReasonCode

__all__ = [
    "MAX_CONTENT_BYTES",
    "Endorser",
    "Image",
    "ImageList",
    "ImageListInvalid",
    "format_time",
    "parse_image_list",
    "parse_time",
    "render_image_list",
    "version_key",
]


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
    """``hv:endorser``: who the list says has signed it. ``dn`` and ``ca`` are in slash form.

    ``extra`` are other keys of ``hv:x509``, ``beside`` those next to it.
    """

    dn: str
    ca: str
    email: str = ""
    creator: str = ""
    extra: Mapping[str, Json] = field(default_factory=dict)
    beside: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Image:
    """One ``hv:image``. ``size_bytes`` and ``sha512`` speak of the file as downloaded.

    ``extra`` are its other keys, ``beside`` those next to ``hv:image``.
    """

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
    beside: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageList:
    """One list. Times are aware, in UTC; ``identifier`` is a lowercase UUID.

    ``extra`` are its other keys, ``beside`` those next to ``hv:imagelist``.
    """

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
    beside: Mapping[str, Json] = field(default_factory=dict)


#: The texts that only describe, by the names that they have here.
LIST_TEXTS = {
    "title": "dc:title",
    "description": "dc:description",
    "source": "dc:source",
    "uri": "hv:uri",
}
IMAGE_TEXTS = {
    "title": "dc:title",
    "description": "dc:description",
    "hypervisor": "hv:hypervisor",
    "arch": "sl:arch",
    "os": "sl:os",
    "os_version": "sl:osversion",
    "comments": "sl:comments",
}
ENDORSER_TEXTS = {"email": "hv:email", "creator": "dc:creator"}


#: What makes a list of the bare form.
_LIST_KEYS = {
    "dc:identifier",
    "dc:date:created",
    "dc:date:expires",
    "hv:endorser",
    "hv:images",
    "hv:version",
}


def version_key(version: str) -> tuple[tuple[int, int, str], ...]:
    """What versions are compared by: parts between ``- , . /``, numbers as numbers and below texts.

    The rule is vmcatcher's; ``1.10`` is above ``1.9``, and ``1.0.0`` above ``1.0``.
    """
    return tuple(
        (0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part)
        for part in re.split(r"[-,./]", version)
    )


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
    beside: dict[str, Json] = {}
    if isinstance(document, dict) and "hv:imagelist" in document:
        beside = {key: value for key, value in document.items() if key != "hv:imagelist"}
        for key in sorted(_LIST_KEYS & beside.keys()):
            text = f"list: {key} stands beside hv:imagelist; readers of the bare form take that"
            faults.append(Reason(ReasonCode.FIELD_INVALID, text))
        document = document["hv:imagelist"]
    parsed = _read_list(FieldReader(document, "list", faults), beside)
    if parsed is None or faults:
        raise ImageListInvalid(faults)
    return parsed


def _read_list(reader: FieldReader, beside: dict[str, Json]) -> ImageList | None:
    created, expires = reader.time("dc:date:created"), reader.time("dc:date:expires")
    if created and expires and expires <= created:
        reader.fault(ReasonCode.FIELD_INVALID, "dc:date:expires", "is not after dc:date:created")
    identifier, version = reader.uuid("dc:identifier"), reader.version("hv:version")
    texts = {name: reader.text(key, required=False) for name, key in LIST_TEXTS.items()}
    endorser = _read_endorser(reader.nested("hv:endorser"))
    images = []
    for number, entry in enumerate(reader.array("hv:images")):
        where = f"image {number}"
        holder = FieldReader(entry, where, reader.faults)
        images.append(_read_image(holder.nested("hv:image", where), holder.rest()))
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
        beside=beside,
        **texts,
    )


def _read_endorser(holder: FieldReader) -> Endorser:
    reader = holder.nested("hv:x509")
    dn, ca = reader.text("hv:dn"), reader.text("hv:ca")
    texts = {name: reader.text(key, required=False) for name, key in ENDORSER_TEXTS.items()}
    return Endorser(dn=dn, ca=ca, extra=reader.rest(), beside=holder.rest(), **texts)


def _read_image(reader: FieldReader, beside: dict[str, Json]) -> Image:
    identifier = reader.uuid("dc:identifier")
    if identifier:
        reader.where = f"image {identifier}"
    texts = {name: reader.text(key, required=False) for name, key in IMAGE_TEXTS.items()}
    return Image(
        identifier=identifier,
        version=reader.version("hv:version"),
        uri=reader.text("hv:uri"),
        size_bytes=reader.size("hv:size"),
        sha512=reader.hexadecimal("sl:checksum:sha512", 128),
        format=reader.text("hv:format", required=False) or None,
        expires=reader.time("dc:date:expires", required=False),
        extra=reader.rest(),
        beside=beside,
        **texts,
    )


def render_image_list(image_list: ImageList) -> bytes:
    """The list as JSON, sorted keys and indent 4, as the field's tools write it; with ``extra``."""
    endorser = image_list.endorser
    x509 = dict(endorser.extra) | {"hv:dn": endorser.dn, "hv:ca": endorser.ca}
    x509 |= {key: getattr(endorser, name) for name, key in ENDORSER_TEXTS.items()}
    document: dict[str, Json] = dict(image_list.extra) | {
        "dc:identifier": image_list.identifier,
        "dc:date:created": format_time(image_list.created),
        "dc:date:expires": format_time(image_list.expires),
        "hv:version": image_list.version,
        "hv:endorser": dict(endorser.beside) | {"hv:x509": x509},
        "hv:images": [
            dict(image.beside) | {"hv:image": _image_object(image)} for image in image_list.images
        ],
    }
    document |= {key: getattr(image_list, name) for name, key in LIST_TEXTS.items()}
    return render_json(dict(image_list.beside) | {"hv:imagelist": document})


def _image_object(image: Image) -> dict[str, Json]:
    document: dict[str, Json] = dict(image.extra) | {
        "dc:identifier": image.identifier,
        "hv:version": image.version,
        "hv:uri": image.uri,
        "hv:size": image.size_bytes,
        "sl:checksum:sha512": image.sha512,
    }
    document |= {key: getattr(image, name) for name, key in IMAGE_TEXTS.items()}
    if image.format is not None:
        document["hv:format"] = image.format
    if image.expires is not None:
        document["dc:date:expires"] = format_time(image.expires)
    return document
