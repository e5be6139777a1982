"""What all messages stand on: bounded field types, two bases, bytes to model and back.

``decode`` turns bytes into a model or raises ``MessageInvalid`` with one line; ``encode`` is its
inverse. Unknown keys are ignored, so that a newer peer may say more; everything known is bounded.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
)

from distrib.errors import MessageInvalid

MESSAGE_MAX_BYTES = 1 << 20
"""Larger messages are refused unread (a desired state of 200 images is about 200 KiB)."""


def _utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("time without a zone: end it with Z")
    return value.astimezone(UTC)


def _rfc3339(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Time = Annotated[datetime, AfterValidator(_utc), PlainSerializer(_rfc3339, return_type=str)]
NodeName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$")]
Infohash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ImageId = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
VersionText = Annotated[
    str, Field(min_length=1, max_length=64, pattern=r"^[0-9A-Za-z][\w.,/+~-]*$")
]
Bytes = Annotated[int, Field(ge=0, le=1 << 60)]
Port = Annotated[int, Field(ge=1, le=65535)]
Text = Annotated[str, Field(max_length=1000)]
HostKey = Annotated[str, Field(max_length=1000, pattern=r"^[a-z0-9@.-]+ [A-Za-z0-9+/]+={0,3}$")]
HostKeys = Annotated[tuple[HostKey, ...], Field(max_length=4)]
"""Of an sshd, as in known_hosts without the host ("ssh-ed25519 AAAA...")."""
Token = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[\w.:@+-]+$")]


class Model(BaseModel):
    """Base of all messages."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Message(Model):
    """A message of its own on a topic."""

    v: Literal[1] = 1


M = TypeVar("M", bound=BaseModel)


def encode(message: BaseModel) -> bytes:
    """JSON, compact, UTF-8."""
    return message.model_dump_json(exclude_none=True).encode()


def describe(error: ValidationError) -> str:
    """The first fault of a validation in one line: where and what."""
    first: Any = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "document"
    return f"{where}: {first['msg']}"


def decode(model: type[M], data: bytes, *, what: str) -> M:
    """Parse ``data`` as ``model``.

    Raises MessageInvalid (``what`` names the topic or file) for anything but a well-formed
    message of major version 1 within the bounds.
    """
    if len(data) > MESSAGE_MAX_BYTES:
        raise MessageInvalid(
            f"{what}: {len(data)} bytes, more than {MESSAGE_MAX_BYTES}", hint="ignored unread"
        )
    try:
        return TypeAdapter(model).validate_json(data)
    except ValidationError as error:
        raise MessageInvalid(
            f"{what}: {describe(error)}", hint="the sender and this side differ in version, or lie"
        ) from None
    except RecursionError:
        raise MessageInvalid(f"{what}: nested too deep", hint="ignored") from None
