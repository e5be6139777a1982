"""Leases on disk: who uses which image, and with whom the lease dies.

A lease is written before its instance is made and forgotten before its instance is dropped, so
that a crash leaves at most a lease without an instance or an instance without a lease, and never a
running job without its lease.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from agent.cache import durable
from agent.cache.holders import Holder
from agent.cache.store import Instance
from distrib.bus.schema import Infohash, Text, Time, Token
from distrib.errors import StateCorrupt

LeaseId = Annotated[str, Field(pattern=r"^l-[0-9a-f]{6,64}$")]


@dataclass(frozen=True)
class Lease:
    """One use of an image. ``device`` is empty until the instance is made."""

    lease: LeaseId
    infohash: Infohash
    image: Text
    store: Token
    user: Text
    holder: Annotated[Holder, Field(discriminator="kind")]
    since: Time
    device: str = ""
    format: Literal["raw", "qcow2"] = "raw"
    block: bool = False
    scratch: str | None = None
    v: Literal[1] = field(default=1, kw_only=True)

    @property
    def made(self) -> bool:
        """Whether its instance was made."""
        return bool(self.device)

    def with_instance(self, instance: Instance) -> Lease:
        """The lease once its instance is there."""
        return replace(
            self,
            device=str(instance.path),
            format=instance.format,
            block=instance.block,
            scratch=None if instance.scratch is None else str(instance.scratch),
        )

    def as_dict(self) -> dict[str, object]:
        """The lease as the socket carries it (docs/formats/socket.md)."""
        dumped: dict[str, object] = _ADAPTER.dump_python(self, mode="json")
        for inside in ("v", "infohash", "store"):
            del dumped[inside]
        return dumped


_ADAPTER: Final = TypeAdapter(Lease)


def new_lease_id() -> str:
    """A name that no lease has had."""
    return f"l-{secrets.token_hex(6)}"


@dataclass(frozen=True)
class LoadedLeases:
    """All leases that could be read, and what could not: lease and fault."""

    leases: tuple[Lease, ...]
    corrupt: tuple[tuple[str, StateCorrupt], ...]


class Leases:
    """The directory ``leases/`` of the agent's state: ``<lease>.json`` each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        durable.make_directory(directory)
        durable.sweep(directory)

    def load(self) -> LoadedLeases:
        """Read all; a file that cannot be read is set aside and named, never fatal."""
        leases: list[Lease] = []
        corrupt: list[tuple[str, StateCorrupt]] = []
        for path in sorted(self._directory.glob("*.json")):
            try:
                leases.append(durable.load(path, partial(_parse, path.stem)))
            except StateCorrupt as error:
                corrupt.append((path.stem, error))
        return LoadedLeases(tuple(leases), tuple(corrupt))

    def save(self, lease: Lease) -> None:
        """Write the lease; it is on disk on return. Raises StorageFailed."""
        durable.replace(self._directory / f"{lease.lease}.json", _ADAPTER.dump_json(lease))

    def delete(self, lease: Lease) -> None:
        """Forget the lease; nothing when it is not there. Raises StorageFailed."""
        durable.remove(self._directory / f"{lease.lease}.json")


def _parse(name: str, data: bytes) -> Lease:
    lease = _ADAPTER.validate_json(data)
    if lease.lease != name:
        raise ValueError(f"speaks of another lease: {lease.lease}")
    return lease
