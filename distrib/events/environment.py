"""What a handler sees: the event's variables, the site's, and nothing of the controller's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from distrib.db.intake_models import Event
from distrib.db.outbox import INFOHASH_VARIABLE, LIST_SHA512_VARIABLE, clean
from distrib.trust.imagelist import ImageListInvalid, parse_image_list
from distrib.trust.signature import open_smime

VO_VARIABLE = "VMCATCHER_EVENT_VO"
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Site:
    """Where things are on the head. ``database`` is the URL without its password."""

    database: str
    images: Path
    downloads: Path
    certificates: Path
    image_file: Callable[[str], Path]
    list_file: Callable[[str], Path]

    def vo(self, list_sha512: str) -> str:
        """``ad:vo`` of a signed list that was accepted; empty where it says none."""
        try:
            return _vo_of(self.list_file(list_sha512))
        except (OSError, ImageListInvalid):
            return ""


def handler_environment(
    event: Event, *, command: str | Sequence[str], home: str, site: Site
) -> dict[str, str]:
    """The whole environment of one run."""
    said = {name: str(value) for name, value in event.environment.items()}
    told = {
        "PATH": os.environ.get("PATH", _DEFAULT_PATH),
        "HOME": home,
        "LANG": "C.UTF-8",
        "DISTRIB_EVENT_ID": str(event.id),
        "VMCATCHER_RDBMS": site.database,
        "VMCATCHER_CACHE_EVENT": command if isinstance(command, str) else " ".join(command),
        "VMCATCHER_CACHE_DIR_CACHE": str(site.images),
        "VMCATCHER_CACHE_DIR_DOWNLOAD": str(site.downloads),
        "VMCATCHER_CACHE_DIR_EXPIRE": str(site.images),
        "VMCATCHER_DIR_CERT": str(site.certificates),
        "VMCATCHER_LOG_CONF": "",
    }
    infohash, signed = said.get(INFOHASH_VARIABLE), said.get(LIST_SHA512_VARIABLE)
    if infohash:
        told["VMCATCHER_EVENT_FILENAME"] = str(site.image_file(infohash))
    if signed and VO_VARIABLE not in said and (vo := clean(site.vo(signed))):
        told[VO_VARIABLE] = vo
    return said | told


@lru_cache(maxsize=64)
def _vo_of(file: Path) -> str:
    found = parse_image_list(open_smime(file.read_bytes()).document).extra.get("ad:vo", "")
    return found if isinstance(found, str) else ""
