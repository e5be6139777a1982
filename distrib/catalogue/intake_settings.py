"""What can be told about taking images in."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from distrib.config import Section
from distrib.inspection.checks.table import BUILT_IN


class IntakeSettings(Section):
    """Images on their way in."""

    user: str = Field(
        "",
        description="user that tools run as on images nobody has approved; empty: distrib-inspect"
        " if there is one, else an id that nobody has (a controller that is not root: its own)",
    )
    max_raw_bytes: int = Field(256 << 30, gt=0, description="largest disk that is taken in")
    convert_s: float = Field(3600, gt=0, description="longest that one step of a conversion takes")
    downloads: int = Field(2, ge=1, le=16, description="images that are fetched at a time")
    attempts: int = Field(8, ge=1, description="tries to fetch an image before it is left alone")
    retry_s: float = Field(
        30,
        gt=0,
        description="wait after the first failure; then twice that each time, up to 1 h",
    )
    file_roots: tuple[Path, ...] = Field(
        (), description="folders of the head that lists may name images in by file: URLs"
    )
    required_checks: tuple[str, ...] = Field(
        tuple(check.name for check in BUILT_IN), description="checks that an image has to pass"
    )
    on_fail: Literal["warn", "refuse"] = Field(
        "warn", description="what an approval does where one of them is not passed"
    )
    max_age_s: float = Field(365 * 86400, gt=0, description="age at which an image fails check age")
    checks_dir: Path | None = Field(None, description="folder with checks of the site's own")
    check_s: float = Field(120, gt=0, description="longest that a check of the site's own takes")
