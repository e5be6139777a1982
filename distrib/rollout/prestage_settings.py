"""What can be told about pre-staging."""

from __future__ import annotations

from pydantic import Field, field_validator

from distrib.config import Section
from distrib.rollout.plan import parse_selector


class PrestageSettings(Section):
    """Images that queued jobs name are brought to a few nodes without anybody's doing."""

    nodes: str = Field("all", description="selector of the nodes that may get them; empty: none")
    count: int = Field(4, ge=1, le=50, description="nodes at most, of one image at a time")
    at_once: int = Field(8, ge=1, description="pre-stagings at most that are under way at a time")
    per_minute: int = Field(60, ge=1, description="wants that one node or token may say a minute")
    keep_s: float = Field(3600, gt=0, description="a want lapses unless it is said again meanwhile")

    @field_validator("nodes")
    @classmethod
    def _is_selector(cls, value: str) -> str:
        if value:
            parse_selector(value)
        return value
