"""Taking images in: a signed list that names the image, then the image itself, into quarantine.

1. ``announce``: the list is accepted (``acceptance``) from the endorsers that this site has
   authorised for it, its images follow (``following``), and one of them is expected.
2. ``receive``: the file streams into quarantine while its size and SHA-512 are computed. It is
   refused at the first byte too many, and what was refused is deleted.

Nothing of a quarantined image reaches a node: that takes an approval (``approval``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from distrib.catalogue import transitions
from distrib.catalogue.acceptance import Acceptance, Accepted, claim_of
from distrib.catalogue.clock import Clock
from distrib.catalogue.endorsers import authorised_for
from distrib.catalogue.following import is_usable_version
from distrib.catalogue.formats import stated_format
from distrib.catalogue.transitions import Change
from distrib.db.intake_models import Take
from distrib.db.models import Image, ImageState
from distrib.db.references import image_name
from distrib.db.session import Database
from distrib.errors import (
    Conflict,
    DigestMismatch,
    ImageError,
    NotFound,
    OperatorError,
    Revoked,
    TrustRefused,
)
from distrib.trust.imagelist import Image as Endorsed
from distrib.trust.imagelist import ImageList


@dataclass(frozen=True)
class ImageChoice:
    """Which image of a list is meant: everything that is given must fit, and fit one only."""

    sha512: str | None = None
    identifier: str | None = None
    title: str | None = None
    version: str | None = None
    size_bytes: int | None = None

    def fits(self, image: Endorsed) -> bool:
        """Whether ``image`` is one that is meant."""
        wanted = (
            (self.sha512 and self.sha512.lower(), image.sha512),
            (self.identifier and self.identifier.lower(), image.identifier),
            (self.title, image.title),
            (self.version, image.version),
        )
        return all(not want or want == have for want, have in wanted)


class Intake:
    """Signed lists in, expected images out."""

    def __init__(self, *, database: Database, acceptance: Acceptance, clock: Clock) -> None:
        self._database = database
        self._acceptance = acceptance
        self._clock = clock

    def announce(self, message: bytes, choice: ImageChoice, *, actor: str) -> Image:
        """Accept the signed list and expect the image of it that ``choice`` names.

        An image that is known already comes back in the state that it is in. Raises TrustRefused
        with every reason, NotFound or OperatorError where none or several fit, DigestMismatch for
        another SHA-512 or size, Conflict for other bytes under a known version, Revoked for a
        denied image.
        """
        accepted = self._accept(message, actor=actor)
        endorsed = _choose(accepted.image_list, choice)
        _check_usable(endorsed, choice, self._clock())
        with self._database.transaction() as session:
            row = session.get(Image, (endorsed.identifier, endorsed.version), with_for_update=True)
            if row is None or row.list_identifier != accepted.image_list.identifier:
                raise _passed_over(endorsed, accepted)
            _check_same(row, endorsed)
            if row.state == ImageState.ANNOUNCED:
                transitions.expected(session, row, source="", change=Change(self._clock(), actor))
            return row

    def _accept(self, message: bytes, *, actor: str) -> Accepted:
        trust, claim = self._acceptance.trust(), claim_of(message)
        with self._database.transaction() as session:
            examined = self._acceptance.examine(
                session,
                message,
                claim,
                trust,
                endorsers=authorised_for(session, claim.identifier),
            )
            if not examined.reasons:
                return self._acceptance.accept(session, examined, take=Take.NONE, actor=actor)
            self._acceptance.note_refusal(session, examined, actor=actor)
        examined.require()
        raise AssertionError("a list with reasons against it does not pass")


def _passed_over(endorsed: Endorsed, accepted: Accepted) -> ImageError:
    name = f"{endorsed.identifier}@{endorsed.version}"
    why = next((one.message for one in accepted.remarks if one.image == name), "is not followed")
    return ImageError(
        f"image {name}: {why}", hint="take it in by the list that it came by first", image=name
    )


def _choose(image_list: ImageList, choice: ImageChoice) -> Endorsed:
    fitting = [image for image in image_list.images if choice.fits(image)]
    names = "; ".join(f"{image.title!r} {image.version}" for image in image_list.images[:8])
    others = [image for image in image_list.images if replace(choice, sha512=None).fits(image)]
    if not fitting and others:
        meant = "; ".join(f"{image.title!r} {image.version}" for image in others[:8])
        raise DigestMismatch(
            f"the file's SHA-512 differs from that of {meant} on the list {image_list.identifier}",
            hint="this is not the endorsed file, or another list endorses it",
            list=image_list.identifier,
        )
    if not fitting:
        raise NotFound(
            f"the list {image_list.identifier} names no such image",
            hint=f"it names {names or 'none at all'}",
            list=image_list.identifier,
        )
    if len(fitting) > 1:
        raise OperatorError(
            f"{len(fitting)} images of the list fit",
            hint=f"give title and version of one: {names}",
            list=image_list.identifier,
        )
    return fitting[0]


def _check_usable(endorsed: Endorsed, choice: ImageChoice, now: datetime) -> None:
    name = f"{endorsed.identifier}@{endorsed.version}"
    if not is_usable_version(endorsed.version):
        raise ImageError(
            f"image {endorsed.identifier}: version {endorsed.version[:80]!r} cannot be used here",
            hint="at most 64 of letters, digits and _ . , / + ~ -: the endorser has to change it",
            image=endorsed.identifier,
        )
    if endorsed.expires is not None and endorsed.expires <= now:
        raise TrustRefused(
            f"image {name} expired at {endorsed.expires:%Y-%m-%dT%H:%M:%SZ}",
            hint="ask the endorser for a newer list",
            image=name,
        )
    stated_format(endorsed.format, image=name)
    if choice.size_bytes is not None and choice.size_bytes != endorsed.size_bytes:
        raise DigestMismatch(
            f"image {name}: the file has {choice.size_bytes} bytes,"
            f" the list says {endorsed.size_bytes}",
            hint="this is not the endorsed file, or not all of it",
            image=name,
        )


def _check_same(row: Image, endorsed: Endorsed) -> None:
    if row.endorsed_sha512 != endorsed.sha512:
        raise Conflict(
            f"image {image_name(row)} is known with other bytes",
            hint="other bytes need another version: the endorser has to change it",
            image=image_name(row),
        )
    if row.state == ImageState.DENIED:
        raise Revoked(
            f"image {image_name(row)} was denied by this site: {row.reason}",
            hint="take in another version, or distrib image undeny",
            image=image_name(row),
        )
