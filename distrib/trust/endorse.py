"""What an endorser does before signing: dates, version and own name are stamped into the list.

The rules are vmcaster's.
"""

from __future__ import annotations

import re
from collections import Counter
from datetime import datetime, timedelta

from cryptography import x509

from distrib.trust.fields import format_time
from distrib.trust.imagelist import (
    ENDORSER_TEXTS,
    IMAGE_TEXTS,
    LIST_TEXTS,
    ImageListInvalid,
    parse_image_list,
)
from distrib.trust.jsontext import Json, JsonRefused, load_json, render_json
from distrib.trust.names import slash_form
from distrib.trust.reasons import Reason, ReasonCode

#: The book of the HEPiX working group recommends about a month; hepixvmitrust takes four weeks.
DEFAULT_LIFETIME = timedelta(days=28)
FIRST_VERSION = "0.0.0"


def stamp_list(
    content: bytes,
    certificate: x509.Certificate,
    *,
    now: datetime,
    lifetime: timedelta = DEFAULT_LIFETIME,
    bump: bool = False,
) -> bytes:
    """The list, ready to be signed with ``certificate``: rendered JSON.

    created = ``now``, expires = ``now + lifetime``, ``hv:dn`` and ``hv:ca`` from the certificate,
    and with ``bump`` the next version. Texts that only describe are there afterwards, if empty:
    the readers of 2011 ask for every one. ``ImageListInvalid`` if verifiers would refuse the list
    for its form.
    """
    try:
        document = load_json(content)
    except JsonRefused as error:
        raise ImageListInvalid([error.reason]) from None
    beside: dict[str, Json] = {}
    if isinstance(document, dict) and "hv:imagelist" in document:
        beside, document = document, document["hv:imagelist"]
    if not isinstance(document, dict):
        raise ImageListInvalid([Reason(ReasonCode.FIELD_INVALID, "list: is not an object")])
    stamped: dict[str, Json] = dict.fromkeys(LIST_TEXTS.values(), "")
    stamped.update(document)
    if isinstance(images := stamped.get("hv:images"), list):
        stamped["hv:images"] = [_with_texts(entry) for entry in images]
    stamped["dc:date:created"] = format_time(now)
    stamped["dc:date:expires"] = format_time(now + lifetime)
    own_name: dict[str, Json] = {
        "hv:dn": slash_form(certificate.subject),
        "hv:ca": slash_form(certificate.issuer),
    }
    stated = document.get("hv:endorser")
    endorser = dict(stated) if isinstance(stated, dict) else {}
    x509_keys = endorser.get("hv:x509")
    endorser["hv:x509"] = (
        dict.fromkeys(ENDORSER_TEXTS.values(), "")
        | (x509_keys if isinstance(x509_keys, dict) else {})
        | own_name
    )
    stamped["hv:endorser"] = endorser
    if bump:
        stamped["hv:version"] = next_version(document.get("hv:version"))
    rendered = render_json(beside | {"hv:imagelist": stamped})
    _check(rendered)
    return rendered


def _with_texts(entry: Json) -> Json:
    image = entry.get("hv:image") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(image, dict):
        return entry
    return entry | {"hv:image": dict.fromkeys(IMAGE_TEXTS.values(), "") | image}


def next_version(version: Json) -> str:
    """The last part plus one (``1.9`` -> ``1.10``); ``0.0.0`` where there is none yet."""
    if version is None or version == "":
        return FIRST_VERSION
    text = str(version)
    match = re.fullmatch(r"(|.*[-,./])([0-9]{1,30})", text, re.DOTALL)
    if match is None:
        return f"{text}.1"
    return f"{match[1]}{int(match[2]) + 1}"


def _check(rendered: bytes) -> None:
    counts = Counter(image.identifier for image in parse_image_list(rendered).images)
    twice = [
        Reason(ReasonCode.UUID_DUPLICATE, f"image {identifier} occurs {count} times")
        for identifier, count in counts.items()
        if count > 1
    ]
    if twice:
        raise ImageListInvalid(twice)
