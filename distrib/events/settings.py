"""What the site says of its event handlers."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from distrib.config import Section
from distrib.db.outbox import EventType

Line = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")]


class HandlerSettings(Section):
    """One handler."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]{0,39}$", description="its name; a new name is a new handler"
    )
    command: Line | Annotated[list[Line], Field(min_length=1)] = Field(
        description="a command line for /bin/sh, or a list: program and arguments"
    )
    types: list[EventType] = Field([], description="the types that it is told; empty: all")
    versions: bool = Field(
        False,
        description="tell it too that a version expires which a newer one has replaced: only for"
        " handlers that keep the versions of a UUID apart",
    )
    time_limit_s: float = Field(600, gt=0, description="then it is ended: SIGTERM, then SIGKILL")
    grace_s: float = Field(10, ge=0, description="from SIGTERM to SIGKILL")
    retry_first_s: float = Field(10, gt=0, description="wait after the first failure; it doubles")
    retry_longest_s: float = Field(3600, gt=0, description="the longest wait between two tries")
    give_up_s: float = Field(
        3 * 86400, ge=0, description="an event is given up after waits of this sum"
    )
    user: str = Field("", description="who runs it; empty: the controller's user")


class EventsSettings(Section):
    """Event handlers."""

    handlers: list[HandlerSettings] = Field(
        [], description="programs that are told of images, as vmcatcher told them"
    )
    keep_s: float = Field(90 * 86400, gt=0, description="how long events that are done are kept")

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [handler.name for handler in self.handlers]
        if len(names) != len(set(names)):
            raise ValueError("two handlers have the same name")
        return self
