"""The hooks put into a cell's configuration and taken out again, as it was before.

What was there is kept in a record on the host where this is run; only values that are still ours
are put back, so that what an administrator has changed meanwhile stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.cache import durable
from agent.hooks.gridengine.cell import Attribute, Cell
from agent.hooks.gridengine.names import IMAGES, MEMORY, READY
from agent.hooks.gridengine.wrappers import NAMES, render
from distrib.errors import Conflict, OperatorError, StorageFailed

RECORD = Path("/var/lib/distrib/gridengine.json")

_COMPLEXES = {
    MEMORY: f"{MEMORY} MEMORY <= YES YES 0 0",
    READY: f"{READY} BOOL == YES NO 0 0",
    IMAGES: f"{IMAGES} RESTRING == YES NO NONE 0",
}
"""qconf -sc: shortcut, type, relation, requestable, consumable, default, urgency."""


@dataclass(frozen=True)
class Change:
    """``before`` and ``after``: None where nothing is set."""

    attribute: Attribute
    before: str | None
    after: str | None

    def as_dict(self) -> dict[str, object]:
        """As ``--json`` and the record have it."""
        one = self.attribute
        return {
            "kind": one.kind,
            "of": one.of,
            "name": one.name,
            "before": self.before,
            "after": self.after,
        }


@dataclass(frozen=True)
class Wish:
    """What is to be installed. ``vmem``: guest memory of each host, as complex values have it."""

    directory: Path
    queues: Sequence[str]
    vmem: dict[str, str] = field(default_factory=dict)
    with_jsv: bool = True
    replace: bool = False


def plan(cell: Cell, wish: Wish) -> list[Change]:
    """What has to be changed; nothing where all is as wished.

    Raises Conflict where somebody else's hook is in the place of ours."""
    changes = [_change(cell, one, value) for one, value in _fixed(wish)]
    changes += [_change(cell, one, _listed(cell, one, wish)) for one in _lists(wish)]
    for change in changes:
        taken = change.before is not None and change.before != change.after
        if taken and change.attribute.kind in {"queue", "config"} and not wish.replace:
            if change.attribute.name in {"load_sensor", "jsv_allowed_mod"}:
                continue
            if str(wish.directory) in (change.before or ""):
                continue  # ours, of another version
            raise Conflict(
                f"{change.attribute} is {change.before}",
                hint="call ours from yours, or install with --replace (remove puts yours back)",
            )
    return [change for change in changes if change.before != change.after]


def apply(cell: Cell, changes: Iterable[Change], record: Path) -> None:
    """Make the changes; each is in the record before it is made."""
    kept = {change.attribute: change for change in load(record)}
    for change in changes:
        first = kept.get(change.attribute)
        before = first.before if first is not None else change.before
        kept[change.attribute] = Change(change.attribute, before, change.after)
        _save(record, list(kept.values()))
        cell.put(change.attribute, change.after)


@dataclass(frozen=True)
class Left:
    """What could not be put back, and why: somebody has changed it, or the cell refuses."""

    change: Change
    why: str


def undo(cell: Cell, record: Path, *, dry_run: bool) -> tuple[list[Change], list[Left]]:
    """Put back what was there: what was put back (or would be), and what is left.

    The record stays until nothing is left."""
    done: list[Change] = []
    left: list[Left] = []
    for change in reversed(load(record)):
        now = cell.get(change.attribute)
        if now == change.before:
            continue
        if now != change.after:
            back = Change(change.attribute, now, change.before)
            left.append(Left(back, "it was changed meanwhile"))
            continue
        back = Change(change.attribute, now, change.before)
        if not dry_run:
            try:
                cell.put(change.attribute, change.before)
            except OperatorError as error:
                left.append(Left(back, error.message))
                continue
        done.append(back)
    if not dry_run and not left:
        record.unlink(missing_ok=True)
    return done, left


def load(record: Path) -> list[Change]:
    """The record of an installation; empty where there is none. Raises OperatorError."""
    try:
        document = json.loads(record.read_text("utf-8"))
        return [
            Change(Attribute(one["kind"], one["of"], one["name"]), one["before"], one["after"])
            for one in document["changes"]
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OperatorError(
            f"{record}: not the record of an installation: {error}",
            hint="undo by hand with qconf, then move it away",
        ) from None


def write_wrappers(directory: Path, *, socket: Path, dry_run: bool) -> list[Path]:
    """Write the wrappers that are not there as they should be; which ones. Raises StorageFailed."""
    written = []
    try:
        for name in NAMES:
            file, text = directory / name, render(name, socket=socket)
            if file.is_file() and file.read_text("utf-8", "replace") == text:
                continue
            written.append(file)
            if not dry_run:
                directory.mkdir(mode=0o755, parents=True, exist_ok=True)
                # Renamed into place: one may be running, and a shell reads as it goes.
                partial = file.with_name(f".{name}.partial")
                partial.write_text(text, "utf-8")
                partial.chmod(0o755)
                partial.replace(file)
    except OSError as error:
        raise StorageFailed(f"{directory}: {error.strerror}", path=str(directory)) from None
    return written


def remove_wrappers(directory: Path, *, dry_run: bool) -> list[Path]:
    """Remove the wrappers; which ones there were."""
    found = [directory / name for name in NAMES if (directory / name).exists()]
    if not dry_run:
        for file in found:
            file.unlink()
        if found and not any(directory.iterdir()):
            directory.rmdir()
    return found


def _fixed(wish: Wish) -> list[tuple[Attribute, str]]:
    found = [(Attribute("complex", "global", name), line) for name, line in _COMPLEXES.items()]
    found += [(Attribute("host", host, MEMORY), size) for host, size in wish.vmem.items()]
    for queue in wish.queues:
        for name, value in {
            "prolog": f"root@{wish.directory}/prolog $job_id $job_owner",
            "starter_method": f"{wish.directory}/starter",
            "epilog": f"root@{wish.directory}/epilog $job_id",
            "terminate_method": f"{wish.directory}/terminate $job_pid",
        }.items():
            found.append((Attribute("queue", queue, name), value))
    if wish.with_jsv:
        found.append((Attribute("config", "global", "jsv_url"), f"script:{wish.directory}/jsv"))
    return found


def _lists(wish: Wish) -> list[Attribute]:
    names = ["load_sensor", *(["jsv_allowed_mod"] if wish.with_jsv else [])]
    return [Attribute("config", "global", name) for name in names]


def _listed(cell: Cell, attribute: Attribute, wish: Wish) -> str | None:
    """A list with our part in it (a sensor), or out of it (what may be changed past the JSV)."""
    parts = [part for part in (cell.get(attribute) or "").split(",") if part]
    if attribute.name == "jsv_allowed_mod":
        # A context that is changed later would only mislead: the image is settled at submission.
        return ",".join(part for part in parts if part != "ac") or None
    ours = f"{wish.directory}/sensor"
    return ",".join(parts if ours in parts else [*parts, ours])


def _change(cell: Cell, attribute: Attribute, after: str | None) -> Change:
    before = cell.get(attribute)
    if attribute == Attribute("complex", "global", MEMORY) and before is not None:
        after = before  # the site's own definition
    return Change(attribute, before, after)


def _save(record: Path, changes: list[Change]) -> None:
    document = {"v": 1, "changes": [change.as_dict() for change in changes]}
    durable.make_directory(record.parent)
    durable.replace(record, json.dumps(document, indent=2).encode())
