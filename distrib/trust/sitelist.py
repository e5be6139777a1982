"""The site list: the images that a site lets run, signed with its catalogue key.

Format and rules: docs/formats/site-list.md. It is an image list with the keys ``distrib:*``, so the
verifier is the one of ``verify``, with the profile ``site``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from distrib.errors import OperatorError
from distrib.trust.chain import TrustMaterial
from distrib.trust.fields import FieldReader
from distrib.trust.imagelist import (
    Endorser,
    ImageList,
    ImageListInvalid,
    parse_image_list,
    render_image_list,
    version_key,
)
from distrib.trust.jsontext import Json
from distrib.trust.reasons import Reason, ReasonCode, refusal
from distrib.trust.revocation import CrlPolicy
from distrib.trust.siteimage import (
    ALIAS_PATTERN,
    Audience,
    ControllerKey,
    ImageState,
    Origin,
    SiteImage,
    check_aliases,
    check_infohashes,
    controller_key_object,
    image_with_site_keys,
    read_controller_key,
    read_site_image,
)
from distrib.trust.verify import DEFAULT_CLOCK_SKEW_S, Expectation, Profile, verify

__all__ = [
    "ALIAS_PATTERN",
    "DEFAULT_MAX_AGE_S",
    "Audience",
    "ControllerKey",
    "ImageRef",
    "ImageRefInvalid",
    "ImageState",
    "Origin",
    "SiteImage",
    "SiteList",
    "SiteVerdict",
    "is_stale",
    "parse_image_ref",
    "parse_site_list",
    "render_site_list",
    "site_list_of",
    "verify_site_list",
]

SITE_PROFILE = "site-list/1"
DEFAULT_MAX_AGE_S = 72 * 3600

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class ImageRef:
    """IMAGE on a command line: ``name`` is an alias or a UUID in lowercase."""

    name: str
    version: str | None

    @property
    def is_uuid(self) -> bool:
        """Whether ``name`` is a UUID and not an alias."""
        return _UUID.fullmatch(self.name) is not None


@dataclass(frozen=True, slots=True)
class SiteList:
    """A site list. ``identifier``, ``version`` and times are the list's own."""

    identifier: str
    version: str
    created: datetime
    expires: datetime
    site: str
    endorser: Endorser
    images: tuple[SiteImage, ...]
    controller_keys: tuple[ControllerKey, ...] = ()
    title: str = ""
    description: str = ""
    source: str = ""
    uri: str = ""

    def find(self, image_ref: str | ImageRef) -> tuple[SiteImage, ...]:
        """The image versions that ``ALIAS | UUID``, maybe with ``@VERSION``, means, newest first.

        Approved versions come before superseded ones. Empty if the list has none.
        ``ImageRefInvalid``.
        """
        ref = parse_image_ref(image_ref) if isinstance(image_ref, str) else image_ref
        if ref.is_uuid:
            uuids = {ref.name}
        else:
            uuids = {entry.identifier for entry in self.images if ref.name in entry.aliases}
        found = [
            entry
            for entry in self.images
            if entry.identifier in uuids and ref.version in {None, entry.version}
        ]
        found.sort(key=lambda entry: version_key(entry.version), reverse=True)
        return tuple(sorted(found, key=lambda entry: entry.state != "approved"))

    def keys(self) -> Mapping[str, Ed25519PublicKey]:
        """The controller keys by id, as ``envelope.open_envelope`` takes them."""
        return {key.identifier: key.public_key for key in self.controller_keys}


class ImageRefInvalid(OperatorError):
    """IMAGE is neither ``ALIAS`` nor ``UUID``, optionally with ``@VERSION``."""


def parse_image_ref(text: str) -> ImageRef:
    """``ALIAS | UUID``, optionally ``@VERSION``; ``ImageRefInvalid`` for anything else."""
    name, at, version = text.partition("@")
    lowered = name.lower()
    if _UUID.fullmatch(lowered):
        name = lowered
    elif not re.fullmatch(ALIAS_PATTERN, name):
        raise ImageRefInvalid(
            f"{text[:80]!r} is no image", hint="write ALIAS or UUID, or either with @VERSION"
        )
    if at and not version:
        raise ImageRefInvalid(f"{text[:80]!r} has an empty version", hint="leave the @ away")
    return ImageRef(name, version or None)


@dataclass(frozen=True, slots=True)
class SiteVerdict:
    """What was found of a site list.

    ``site_list`` is what the message says, a claim unless ``accepted``. ``authentic``: nothing but
    time speaks against it, so a node may go on with what runs. ``stale``: older than ``max_age_s``:
    no new leases.
    """

    reasons: tuple[Reason, ...]
    site_list: SiteList | None
    stale: bool
    signer_dn: str
    signer_ca: str
    digest_algorithm: str
    message_sha512: str
    authentic: bool

    @property
    def accepted(self) -> bool:
        """Whether the list breaks no rule (it may still be stale)."""
        return self.site_list is not None and not self.reasons

    def require(self) -> SiteList:
        """The list, if accepted; else ``TrustRefused`` with every reason."""
        if self.site_list is None or self.reasons:
            raise refusal(
                "site list",
                self.reasons,
                hint="the last good list stays in force; check the catalogue certificate",
                message_sha512=self.message_sha512,
            )
        return self.site_list


def verify_site_list(
    message: bytes,
    *,
    trust: TrustMaterial,
    now: datetime,
    last_version: str | None = None,
    last_sha512: str | None = None,
    max_age_s: float | None = None,
    identifier: str | None = None,
    clock_skew_s: int = DEFAULT_CLOCK_SKEW_S,
    crls: CrlPolicy = "require",
) -> SiteVerdict:
    """Hold a signed site list against every rule. ``trust`` is the site's own CA, nobody else's.

    ``last_version`` and ``last_sha512`` are of the last list that was accepted. Staleness is told
    and not refused, since it stops only new leases.
    """
    expectation = Expectation(
        identifier=identifier,
        last_version=last_version,
        last_sha512=last_sha512,
        clock_skew_s=clock_skew_s,
        profile=Profile.SITE,
    )
    verdict = verify(message, trust=trust, expectation=expectation, now=now, crls=crls)
    site_list: SiteList | None = None
    faults: tuple[Reason, ...] = ()
    if verdict.image_list is not None:
        try:
            site_list = site_list_of(verdict.image_list)
        except ImageListInvalid as error:
            faults = error.found
    return SiteVerdict(
        reasons=(*verdict.reasons, *faults),
        site_list=site_list,
        stale=site_list is not None
        and max_age_s is not None
        and is_stale(site_list.created, now=now, max_age_s=max_age_s),
        signer_dn=verdict.signer_dn,
        signer_ca=verdict.signer_ca,
        digest_algorithm=verdict.digest_algorithm,
        message_sha512=verdict.message_sha512,
        authentic=site_list is not None and verdict.authentic,
    )


def is_stale(created: datetime, *, now: datetime, max_age_s: float = DEFAULT_MAX_AGE_S) -> bool:
    """Whether a list of that age stops new leases (code ``list-stale``)."""
    return now - created > timedelta(seconds=max_age_s)


def parse_site_list(content: bytes) -> SiteList:
    """The site list in ``content`` (JSON); ``ImageListInvalid`` with all its faults."""
    return site_list_of(parse_image_list(content))


def site_list_of(image_list: ImageList) -> SiteList:
    """The site list that an image list with the keys ``distrib:*`` is; ``ImageListInvalid``."""
    faults: list[Reason] = []
    reader = FieldReader(dict(image_list.extra), "list", faults)
    profile = reader.text("distrib:profile")
    if profile and profile != SITE_PROFILE:
        reader.fault(ReasonCode.FIELD_INVALID, "distrib:profile", f"is not {SITE_PROFILE!r}")
    site = reader.text("distrib:site")
    keys = [read_controller_key(entry, faults) for entry in reader.array("distrib:controller_keys")]
    images = tuple(read_site_image(image, faults) for image in image_list.images)
    check_aliases(images, faults)
    check_infohashes(images, faults)
    if faults:
        raise ImageListInvalid(faults)
    return SiteList(
        identifier=image_list.identifier,
        version=image_list.version,
        created=image_list.created,
        expires=image_list.expires,
        site=site,
        endorser=image_list.endorser,
        images=images,
        controller_keys=tuple(keys),
        title=image_list.title,
        description=image_list.description,
        source=image_list.source,
        uri=image_list.uri,
    )


def render_site_list(site_list: SiteList) -> bytes:
    """The site list as JSON, for ``sign_smime``; ``ImageListInvalid`` if it has faults."""
    extra: dict[str, Json] = {
        "distrib:profile": SITE_PROFILE,
        "distrib:site": site_list.site,
        "distrib:controller_keys": [
            controller_key_object(key) for key in site_list.controller_keys
        ],
    }
    content = render_image_list(
        ImageList(
            identifier=site_list.identifier,
            version=site_list.version,
            created=site_list.created,
            expires=site_list.expires,
            endorser=site_list.endorser,
            images=tuple(image_with_site_keys(entry) for entry in site_list.images),
            title=site_list.title,
            description=site_list.description,
            source=site_list.source,
            uri=site_list.uri,
            extra=extra,
        )
    )
    # A list that its own nodes would refuse must not leave the head.
    parse_site_list(content)
    return content
