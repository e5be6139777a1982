"""The site's checks of an image on its way in: run, kept, and asked for at the approval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from distrib.catalogue.clock import Clock
from distrib.catalogue.entries import image_of
from distrib.catalogue.intake_settings import IntakeSettings
from distrib.db.audit import record
from distrib.db.intake_models import ImageCheck, Outcome
from distrib.db.models import Image
from distrib.db.references import image_name
from distrib.errors import ConfigInvalid, ImageError
from distrib.inspection.checks.site import site_checks
from distrib.inspection.checks.subject import Check, Facts, Finding
from distrib.inspection.checks.table import BUILT_IN
from distrib.inspection.inspect import inspect
from distrib.inspection.sandbox import Sandbox
from distrib.trust.fields import parse_time

_CREATED = "dc:date:created"


class ChecksNotPassed(ImageError):
    """The site's policy wants a check that the image did not pass."""

    code = "checks-not-passed"


@dataclass(frozen=True)
class Examination:
    """Runs what the settings name."""

    settings: IntakeSettings
    sandbox: Sandbox
    clock: Clock

    async def examine(self, row: Image, raw: Path) -> Mapping[str, Finding]:
        """What every check says of the raw image. Raises ConfigInvalid for the site's folder."""
        facts = Facts(
            image=image_name(row),
            title=row.title,
            now=self.clock(),
            max_age_s=self.settings.max_age_s,
            created=_created(row),
        )
        return await inspect(raw, self._checks(), facts, sandbox=self.sandbox)

    def _checks(self) -> Sequence[Check]:
        folder = self.settings.checks_dir
        try:
            own = site_checks(folder, limit_s=self.settings.check_s)
        except OSError as error:
            raise ConfigInvalid(
                f"{folder}: {error.strerror}", hint="setting intake.checks_dir", path=str(folder)
            ) from None
        return (*BUILT_IN, *own)

    def missed(self, session: Session, row: Image) -> dict[str, str]:
        """The required checks that the image did not pass, with their outcome."""
        found = {check.name: check for check in checks_of(session, row)}
        return {
            name: str(found[name].outcome) if name in found else str(Outcome.NOT_INSPECTED)
            for name in self.settings.required_checks
            if name not in found or found[name].outcome != Outcome.PASS
        }

    def require(self, session: Session, row: Image, *, force: str) -> dict[str, str]:
        """Hold an image against the required checks; those that it did not pass, with outcome.

        Raises ChecksNotPassed where the site refuses such images and ``force`` gives no reason.
        """
        missed = self.missed(session, row)
        if missed and self.settings.on_fail == "refuse" and not force:
            told = ", ".join(f"{name} ({outcome})" for name, outcome in missed.items())
            raise ChecksNotPassed(
                f"image {image_name(row)} did not pass {told}",
                hint="distrib image checks says why; --force REASON approves it all the same",
                image=image_name(row),
            )
        return missed


def keep(
    session: Session, row: Image, findings: Mapping[str, Finding], *, at: datetime, actor: str
) -> None:
    """Replace what is known of an image's checks; the audit log has it too."""
    session.execute(
        delete(ImageCheck).where(
            ImageCheck.identifier == row.identifier, ImageCheck.version == row.version
        )
    )
    session.add_all(
        ImageCheck(
            identifier=row.identifier,
            version=row.version,
            name=name,
            outcome=str(finding.outcome),
            text=finding.text,
            at=at,
        )
        for name, finding in findings.items()
    )
    record(
        session,
        at=at,
        actor=actor,
        action="image-checked",
        subject=image_name(row),
        checks={name: str(finding.outcome) for name, finding in findings.items()},
    )


def checks_of(session: Session, row: Image) -> list[ImageCheck]:
    """What the checks said of an image version."""
    query = select(ImageCheck).where(
        ImageCheck.identifier == row.identifier, ImageCheck.version == row.version
    )
    return list(session.scalars(query.order_by(ImageCheck.name)))


def _created(row: Image) -> datetime | None:
    stated = image_of(row.entry).extra.get(_CREATED)
    try:
        return parse_time(stated) if isinstance(stated, str) else None
    except ValueError:
        return None
