"""What a volume group holds, as LVM reports it; our names and tags in it. Pure.

| logical volume           | what           | tags ``distrib.…``                      |
| ---                      | ---            | ---                                     |
| distrib-<infohash>       | an image       | infohash=, bytes=, sealed; labels       |
| distrib-cow-<lease>      | a snapshot     | lease=, infohash=, cow=, scratch=       |
| distrib-scratch-<lease>  | a scratch disk | lease=                                  |
| distrib-gone-<…>-<lease> | to be wiped    | as before                               |

All of them carry the tag ``distrib``: what has such a name without it is somebody else's, and is
left alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

PREFIX: Final = "distrib-"
COW_PREFIX: Final = "distrib-cow-"
SCRATCH_PREFIX: Final = "distrib-scratch-"
GONE_PREFIX: Final = "distrib-gone-"
MARK: Final = "distrib"
SEALED: Final = "distrib.sealed"
CHUNK_BYTES: Final = 4096
_EXCEPTION_BYTES: Final = 16  # drivers/md/dm-snap-persistent.c: struct disk_exception

_INFOHASH: Final = re.compile(r"[0-9a-f]{64}")
_LEASE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,47}")
_NOT_IN_TAG: Final = re.compile(r"[^A-Za-z0-9_+.\-/=!:&#]")

FIELDS: Final = (
    "vg_name,vg_uuid,vg_extent_size,vg_extent_count,vg_free_count,vg_missing_pv_count,"
    "pv_name,pv_free,lv_name,lv_uuid,lv_size,lv_tags,lv_attr,origin,data_percent,lv_kernel_major,lv_kernel_minor"
)

LvmReport = Mapping[str, str]


@dataclass(frozen=True)
class LogicalVolume:
    """One logical volume. ``attr`` are LVM's ten letters (lvs(8)); ``number`` is its
    ``major:minor`` while it is active."""

    name: str
    size_bytes: int
    tags: frozenset[str]
    attr: str
    origin: str
    fill_percent: float | None
    number: str | None

    @property
    def ours(self) -> bool:
        return self.name.startswith(PREFIX) and MARK in self.tags

    @property
    def read_only(self) -> bool:
        return self.attr[1] == "r"

    @property
    def active(self) -> bool:
        return self.attr[4] in "asIS"

    @property
    def invalid(self) -> bool:
        """A snapshot that has overflowed: it gives errors only."""
        return self.attr[4] in "IS"

    @property
    def in_use(self) -> bool:
        return self.attr[5] == "o"

    def tag(self, key: str) -> str:
        """The value of ``distrib.<key>=…``; empty when there is none."""
        start = f"{MARK}.{key}="
        return next((tag[len(start) :] for tag in self.tags if tag.startswith(start)), "")

    def number_of(self, key: str) -> int:
        value = self.tag(key)
        return int(value) if value.isdecimal() else 0


@dataclass(frozen=True)
class Inventory:
    """A volume group. ``free_extents`` are those that our volumes may take."""

    vg: str
    vg_uuid: str
    extent_bytes: int
    extents: int
    free_extents: int
    missing_pvs: int
    lvs: tuple[LogicalVolume, ...]

    @property
    def free_bytes(self) -> int:
        return self.free_extents * self.extent_bytes

    @property
    def ours(self) -> tuple[LogicalVolume, ...]:
        return tuple(lv for lv in self.lvs if lv.ours)

    @property
    def used_bytes(self) -> int:
        """What all of ours take."""
        return sum(lv.size_bytes for lv in self.ours)

    @property
    def images(self) -> tuple[LogicalVolume, ...]:
        return tuple(
            lv
            for lv in self.ours
            if lv.name == image_name(lv.tag("infohash")) and lv.number_of("bytes")
        )

    @property
    def snapshots(self) -> tuple[LogicalVolume, ...]:
        return tuple(lv for lv in self.ours if lv.name.startswith(COW_PREFIX) and lv.origin)

    @property
    def gone(self) -> tuple[LogicalVolume, ...]:
        return tuple(lv for lv in self.ours if lv.name.startswith(GONE_PREFIX))

    @property
    def half_made(self) -> tuple[LogicalVolume, ...]:
        """What belongs to an instance that is not there: a scratch disk without its snapshot, a
        snapshot that was split from its origin to be wiped."""
        whole = {lv.tag("lease") for lv in self.snapshots}
        return tuple(
            lv
            for lv in self.ours
            if (lv.name.startswith(SCRATCH_PREFIX) and lv.tag("lease") not in whole)
            or (lv.name.startswith(COW_PREFIX) and not lv.origin)
        )

    def with_volume(self, lv: LogicalVolume) -> Inventory:
        """The group once a volume was made."""
        taken = lv.size_bytes // self.extent_bytes
        return replace(self, lvs=(*self.lvs, lv), free_extents=self.free_extents - taken)

    def without_volume(self, lv: LogicalVolume) -> Inventory:
        """The group once a volume was removed."""
        left = tuple(one for one in self.lvs if one.name != lv.name)
        given = lv.size_bytes // self.extent_bytes
        return replace(self, lvs=left, free_extents=self.free_extents + given)

    def find(self, name: str) -> LogicalVolume | None:
        return next((lv for lv in self.lvs if lv.name == name), None)

    def on(self, name: str) -> tuple[LogicalVolume, ...]:
        """The snapshots of a volume, whoever made them."""
        return tuple(lv for lv in self.lvs if lv.origin == name)

    def rounded(self, size_bytes: int) -> int:
        """Up to whole extents."""
        return -(-size_bytes // self.extent_bytes) * self.extent_bytes

    def useful_cow_bytes(self, origin_bytes: int) -> int:
        """The size at which a snapshot of a volume cannot overflow any more: each chunk once, the
        header, and the areas that say which chunk is where (also one that is not full)."""
        chunks = -(-origin_bytes // CHUNK_BYTES)
        areas = -(-chunks // (CHUNK_BYTES // _EXCEPTION_BYTES)) + 1
        return self.rounded((1 + areas + chunks) * CHUNK_BYTES)


def read_inventory(rows: Sequence[LvmReport], vg: str, allocate: Collection[str]) -> Inventory:
    """From the rows of `pvs` with ``FIELDS``: at least one for each segment of a physical volume.

    ``allocate``: the physical volumes that count as room; all when empty."""
    first = rows[0]
    extent_bytes = int(first["vg_extent_size"])
    free_extents = int(first["vg_free_count"])
    if allocate:
        free = {row["pv_name"]: int(row["pv_free"]) for row in rows if row["pv_name"] in allocate}
        free_extents = sum(free.values()) // extent_bytes
    return Inventory(
        vg=vg,
        vg_uuid=first["vg_uuid"],
        extent_bytes=extent_bytes,
        extents=int(first["vg_extent_count"]),
        free_extents=free_extents,
        missing_pvs=int(first["vg_missing_pv_count"]),
        lvs=tuple({row["lv_uuid"]: _volume(row) for row in rows if row["lv_name"]}.values()),
    )


def _volume(row: LvmReport) -> LogicalVolume:
    active = row["lv_kernel_minor"] not in ("", "-1")
    return LogicalVolume(
        name=row["lv_name"],
        size_bytes=int(row["lv_size"]),
        tags=frozenset(filter(None, row["lv_tags"].split(","))),
        attr=row["lv_attr"].ljust(10, "-"),
        origin=row["origin"].strip("[]"),
        fill_percent=float(row["data_percent"]) if row["data_percent"] else None,
        number=f"{row['lv_kernel_major']}:{row['lv_kernel_minor']}" if active else None,
    )


def image_name(infohash: str) -> str:
    return PREFIX + infohash


def check_infohash(infohash: str) -> str:
    """Raises ValueError for what is no info-hash."""
    if not _INFOHASH.fullmatch(infohash):
        raise ValueError(f"not an info-hash: {infohash!r}")
    return infohash


def check_lease(lease: str) -> str:
    """Raises ValueError for what is no lease's name."""
    if not _LEASE.fullmatch(lease):
        raise ValueError(f"not a lease: {lease!r}")
    return lease


def made_snapshot(
    name: str, origin: str, size_bytes: int, said: Collection[str], number: str
) -> LogicalVolume:
    """A snapshot as a report would have it right after it was made."""
    return LogicalVolume(
        name=name,
        size_bytes=size_bytes,
        tags=frozenset(said),
        attr="swi-a-s---",
        origin=origin,
        fill_percent=0.0,
        number=number,
    )


def own_tags(**values: str | int) -> tuple[str, ...]:
    """Our mark, and a tag for each value."""
    return (MARK, *(tag(key, value) for key, value in values.items()))


def tags(**values: str | int) -> tuple[str, ...]:
    """The same as arguments for lvcreate."""
    return tuple(argument for one in own_tags(**values) for argument in ("--addtag", one))


def tag(key: str, value: str | int) -> str:
    return f"{MARK}.{key}={_NOT_IN_TAG.sub('_', str(value))[:200]}"
