"""What can be told about images that users propose."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distrib.config import Section


class ProposalSettings(Section):
    """Images that users of the site bring; who may is who has a token of the role ``user``."""

    max_images: int = Field(5, ge=0, description="images of one user at a time")
    max_bytes: int = Field(
        64 << 30, ge=0, description="bytes of one user's images together, as uploaded and as raw"
    )
    admit: Literal["checked", "never"] = Field(
        "checked",
        description="whether a user may run an own image that passed all of"
        " intake.required_checks; never: each waits for an admin",
    )
    unfinished_s: float = Field(
        7 * 86400, gt=0, description="an upload that stands still for so long is dropped"
    )
