"""A head's intake in a process of its own, to be killed half-way: ``half_way.py STATE_DIR``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from distrib.catalogue.clock import utc_now
from distrib.catalogue.collecting import Collector
from distrib.catalogue.conversion import Conversion
from distrib.catalogue.examination import Examination
from distrib.catalogue.intake_settings import IntakeSettings
from distrib.catalogue.passwords import Passwords
from distrib.catalogue.preparation import Preparation
from distrib.catalogue.quarantine import Quarantine
from distrib.catalogue.store import ImageStore
from distrib.db.session import Database, sqlite_url
from distrib.inspection.sandbox import Sandbox


def collector_of(state_dir: Path) -> Collector:
    """The collector over a state directory, without the rest of a head."""
    settings, sandbox = IntakeSettings(), Sandbox.of_user()
    preparation = Preparation(
        database=Database(sqlite_url(state_dir / "distrib.db")),
        store=ImageStore(state_dir),
        clock=utc_now,
        conversion=Conversion(sandbox, settings.max_raw_bytes, settings.convert_s),
        examination=Examination(settings, sandbox, utc_now),
    )
    return Collector(
        database=preparation.database,
        quarantine=Quarantine(preparation),
        preparation=preparation,
        passwords=Passwords(state_dir / "secrets"),
        settings=settings,
        clock=utc_now,
    )


if __name__ == "__main__":
    asyncio.run(collector_of(Path(sys.argv[1])).run())
