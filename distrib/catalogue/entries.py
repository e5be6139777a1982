"""An endorsed entry as the database keeps it: the very object under ``hv:image``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from distrib.trust.imagelist import (
    Endorser,
    Image,
    ImageList,
    parse_image_list,
    render_image_list,
)

# The parser knows lists, so one entry travels in a list of its own.
_CARRIER = ImageList(
    identifier="00000000-0000-0000-0000-000000000000",
    version="1",
    created=datetime(2000, 1, 1, tzinfo=UTC),
    expires=datetime(2000, 1, 2, tzinfo=UTC),
    endorser=Endorser(dn="/CN=none", ca="/CN=none"),
    images=(),
)
_SITE_PREFIX = "distrib:"


def entry_of(image: Image) -> dict[str, Any]:
    """The entry as JSON."""
    document = json.loads(render_image_list(replace(_CARRIER, images=(image,))))
    entry: dict[str, Any] = document["hv:imagelist"]["hv:images"][0]["hv:image"]
    return entry


def image_of(entry: Mapping[str, Any]) -> Image:
    """The entry again, without the keys that only a site may write (``distrib:*``)."""
    endorsed = {key: value for key, value in entry.items() if not key.startswith(_SITE_PREFIX)}
    document = json.loads(render_image_list(_CARRIER))
    document["hv:imagelist"]["hv:images"] = [{"hv:image": endorsed}]
    return parse_image_list(json.dumps(document).encode()).images[0]
