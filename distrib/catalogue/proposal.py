"""What a user says of an image that they propose, and what follows from it for the database.

No endorser stands for such an image. What stands in the place of the endorser's list is the user's
own word, a JSON document that nobody signed: a signature of the site's would make an endorsement of
it that another site might believe. It is a list of its own, with one image in one version, under
UUIDs that the head chooses: so it can be neither an image nor a list that somebody else has.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from dataclasses import dataclass
from datetime import datetime

from distrib.catalogue.entries import entry_of
from distrib.catalogue.formats import stated_format
from distrib.db.models import AcceptedList, Image, ImageState
from distrib.errors import OperatorError
from distrib.trust.fields import format_time
from distrib.trust.imagelist import Image as Endorsed

VERSION = "1"
NOBODY = "nobody"
TITLE_MAX_CHARS = 200
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_USER = re.compile(r"[^\s:/\x00-\x1f\x7f]{1,64}")


@dataclass(frozen=True)
class Proposal:
    """``sha512`` and ``size_bytes`` are of the file as it will be uploaded, in ``format``."""

    user: str
    title: str
    sha512: str
    size_bytes: int
    description: str = ""
    format: str | None = None
    os: str = ""
    os_version: str = ""
    arch: str = "x86_64"

    def check(self) -> None:
        """Raises OperatorError for a text that cannot be used, ImageError for the format."""
        if _USER.fullmatch(self.user) is None:
            raise OperatorError(f"{self.user[:80]!r} is no user", hint="a user's name on the nodes")
        for key in ("title", "description", "os", "os_version", "arch"):
            text = str(getattr(self, key))
            if _CONTROL.search(text) or len(text) > TITLE_MAX_CHARS:
                raise OperatorError(
                    f"{key}: {text[:40]!r} cannot be used",
                    hint=f"one line of at most {TITLE_MAX_CHARS} characters",
                    key=key,
                )
        if not self.title.strip():
            raise OperatorError("title: it is empty", hint="say in one line what it is")
        stated_format(self.format, image=self.title)


@dataclass(frozen=True)
class Proposed:
    """A proposal as rows, and the document that says it."""

    document: bytes
    word: AcceptedList
    image: Image


def proposed(proposal: Proposal, *, now: datetime, actor: str) -> Proposed:
    """A new image of the user, whose file is expected; audience: that user alone."""
    identifier, list_identifier = str(uuid.uuid4()), str(uuid.uuid4())
    said_by = f"nobody; proposed by {proposal.user}"
    endorsed = Endorsed(
        identifier=identifier,
        version=VERSION,
        # Of no use to others: the file is on the head only.
        uri=f"urn:uuid:{identifier}",
        size_bytes=proposal.size_bytes,
        sha512=proposal.sha512.lower(),
        title=proposal.title.strip(),
        description=proposal.description,
        arch=proposal.arch,
        os=proposal.os,
        os_version=proposal.os_version,
        format=proposal.format,
    )
    entry = entry_of(endorsed)
    told = {
        "dc:identifier": list_identifier,
        "dc:date:created": format_time(now.replace(microsecond=0)),
        "distrib:proposed_by": proposal.user,
        "distrib:brought_by": actor,
        "hv:images": [{"hv:image": entry}],
    }
    document = json.dumps(told, sort_keys=True, indent=1).encode()
    word = AcceptedList(
        sha512=hashlib.sha512(document).hexdigest(),
        identifier=list_identifier,
        version=VERSION,
        endorser_dn=said_by,
        endorser_ca=NOBODY,
        created=now,
        expires=now,
        accepted_at=now,
        accepted_by=actor,
    )
    image = Image(
        identifier=identifier,
        version=VERSION,
        title=endorsed.title,
        list_sha512=word.sha512,
        list_identifier=list_identifier,
        list_version=VERSION,
        endorser_dn=said_by,
        endorser_ca=NOBODY,
        entry=entry,
        endorsed_sha512=endorsed.sha512,
        endorsed_size_bytes=endorsed.size_bytes,
        state=ImageState.EXPECTED,
        since=now,
        audience={"users": [proposal.user]},
        proposed_by=proposal.user,
    )
    return Proposed(document, word, image)
