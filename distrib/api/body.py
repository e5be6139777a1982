"""What request bodies have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Body(BaseModel):
    """Base of request bodies: an unknown key is a mistake, and said to be one."""

    model_config = ConfigDict(frozen=True, extra="forbid")
