"""The arguments of a request, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from distrib.bus.schema import describe
from distrib.errors import OperatorError

A = TypeVar("A", bound=BaseModel)


def parse(model: type[A], args: Mapping[str, Any]) -> A:
    """The arguments as ``model`` has them. Raises OperatorError that names what is wrong."""
    try:
        return model.model_validate(args)
    except ValidationError as error:
        raise OperatorError(
            f"socket: {describe(error)}", hint="see docs/formats/socket.md"
        ) from None
