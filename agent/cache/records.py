"""What the node knows of each volume, one file each (docs/formats/state.md).

``TRANSITIONS`` is the life of a volume; a record moves only along it. ``leased`` is not in it: it
is ``ready`` with at least one lease, derived and never stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from agent.cache import durable
from distrib.bus.messages import NodeReason, State
from distrib.bus.schema import Bytes, ImageId, Infohash, Text, Time, Token, VersionText
from distrib.errors import Conflict, StateCorrupt

TEXT_MAX = 1000

TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    # Without room a record goes to `failed` straight away, and has no volume.
    State.ABSENT: frozenset({State.RESERVED, State.FAILED}),
    State.RESERVED: frozenset({State.PULLING, State.FAILED, State.EVICTING}),
    State.PULLING: frozenset({State.VERIFYING, State.FAILED, State.EVICTING}),
    # Back to `pulling`: what did not verify is fetched again.
    State.VERIFYING: frozenset({State.READY, State.PULLING, State.FAILED, State.EVICTING}),
    # Back to `pulling`: repair of a sealed volume.
    State.READY: frozenset({State.PULLING, State.BLOCKED, State.FAILED, State.EVICTING}),
    # A retry: `pulling` with what is there, `reserved` when it starts from nothing.
    State.FAILED: frozenset({State.RESERVED, State.PULLING, State.EVICTING}),
    # A denial was taken back; `pulling` when the volume lost its seal meanwhile.
    State.BLOCKED: frozenset({State.READY, State.PULLING, State.EVICTING}),
    State.EVICTING: frozenset({State.ABSENT}),
}

UNDER_WAY: Final = frozenset({State.RESERVED, State.PULLING, State.VERIFYING})
"""States in which a pull owns the volume: never evicted to make room."""


@dataclass(frozen=True)
class ImageVersion:
    """What the site list says of one image version."""

    infohash: str
    identifier: str
    version: str
    sha512: str
    size_bytes: int
    piece_bytes: int


@dataclass(frozen=True)
class VolumeRecord:
    """One image version on this node. ``damaged``: sealed with bad pieces; no new leases, and
    repaired once nothing stands on it."""

    infohash: Infohash
    identifier: ImageId
    version: VersionText
    sha512: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
    size_bytes: Annotated[int, Field(gt=0, le=1 << 60)]
    piece_bytes: Annotated[int, Field(gt=0, le=1 << 30)]
    store: Token
    state: State
    since: Time
    reason: NodeReason | None = None
    text: Text = ""
    active: bool = False
    active_since: Time | None = None
    pinned: bool = False
    last_leased: Time | None = None
    fetched_bytes: Bytes = 0
    wasted_bytes: Bytes = 0
    copied_bytes: Bytes = 0
    damaged: bool = False
    v: Literal[1] = field(default=1, kw_only=True)

    @property
    def image(self) -> str:
        """The version's full name, ``UUID@VERSION``."""
        return f"{self.identifier}@{self.version}"

    def moved(
        self, to: State, now: datetime, *, reason: NodeReason | None = None, text: str = ""
    ) -> VolumeRecord:
        """The record in state ``to``. Raises Conflict where a volume's life has no such step."""
        if to not in TRANSITIONS.get(self.state, frozenset()):
            raise Conflict(
                f"image {self.image} is {self.state}: it cannot become {to}",
                hint="see `distrib-agent status`",
                image=self.image,
                infohash=self.infohash,
                state=str(self.state),
            )
        # What is pulled again is verified anew; until then bad pieces stay bad.
        damaged = self.damaged and to not in (State.RESERVED, State.PULLING)
        return replace(
            self, state=to, since=now, reason=reason, text=text[:TEXT_MAX], damaged=damaged
        )


def absent(image: ImageVersion, store: str, now: datetime) -> VolumeRecord:
    """The record of a version that has no volume yet: where every life begins. Never saved."""
    return VolumeRecord(**vars(image), store=store, state=State.ABSENT, since=now)


_ADAPTER: Final = TypeAdapter(VolumeRecord)


@dataclass(frozen=True)
class LoadedRecords:
    """All records that could be read, and what could not: info-hash and fault."""

    records: tuple[VolumeRecord, ...]
    corrupt: tuple[tuple[str, StateCorrupt], ...]


class Records:
    """The directory ``volumes/`` of the agent's state: ``<infohash>.json`` each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        durable.make_directory(directory)
        durable.sweep(directory)

    def load(self) -> LoadedRecords:
        """Read all; a file that cannot be read is set aside and named, never fatal.

        ``corrupt`` also names what an earlier start set aside and nothing has replaced since.
        """
        records: list[VolumeRecord] = []
        corrupt: dict[str, StateCorrupt] = {}
        for path in sorted(self._directory.glob("*.json")):
            try:
                record = durable.load(path, partial(_parse, path.stem))
            except StateCorrupt as error:
                corrupt[path.stem] = error
            else:
                records.append(record)
        good = {record.infohash for record in records}
        for path in sorted(self._directory.glob(f"*.json{durable.BAD_SUFFIX}")):
            infohash = path.name.partition(".")[0]
            if infohash not in good and infohash not in corrupt:
                corrupt[infohash] = StateCorrupt(
                    f"{path} was set aside earlier", hint="its volume is verified anew"
                )
        return LoadedRecords(tuple(records), tuple(corrupt.items()))

    def save(self, record: VolumeRecord) -> None:
        """Write the record; it is on disk on return. Raises StorageFailed."""
        durable.replace(self._path(record.infohash), _ADAPTER.dump_json(record))

    def delete(self, infohash: str) -> None:
        """Forget the record and what was set aside of it; nothing when there is none."""
        path = self._path(infohash)
        path.with_name(path.name + durable.BAD_SUFFIX).unlink(missing_ok=True)
        durable.remove(path)

    def _path(self, infohash: str) -> Path:
        return self._directory / f"{infohash}.json"


def _parse(infohash: str, data: bytes) -> VolumeRecord:
    record = _ADAPTER.validate_json(data)
    if record.infohash != infohash:
        raise ValueError(f"speaks of another volume: {record.infohash}")
    return record
