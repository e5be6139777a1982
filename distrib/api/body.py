"""What requests have in common: their bodies, and the numbers in their paths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import Path
from pydantic import BaseModel, ConfigDict, model_validator

#: The number of a row. One that no column holds is a mistake, and not a row that is missing.
RowNumber = Annotated[int, Path(ge=0, le=2**31 - 1)]


class Body(BaseModel):
    """Base of request bodies: an unknown key is a mistake, and said to be one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, value: object) -> object:
        """JSON can write what no database keeps: NUL, and halves of surrogate pairs."""
        for text in _texts(value):
            if not text.isascii():
                text.encode("utf-8")
            if "\x00" in text:
                raise ValueError("a text with a NUL in it")
        return value


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
