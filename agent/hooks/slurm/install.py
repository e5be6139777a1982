"""The hooks put into ``slurm.conf`` and taken out again, as it was before.

Ours is a block between two marks at the end of the file; what it would override is the site's and
stays, with an error that says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.cache import durable
from agent.hooks.slurm.wrappers import NAMES, Places, lua, shell
from distrib.errors import Conflict, OperatorError, StorageFailed

BEGIN, END = "# distrib: begin", "# distrib: end"
_BLOCK = re.compile(rf"(?ms)^{BEGIN}\n.*?^{END}\n")
_OURS = re.compile(r"-- Written by distrib-agent|-- Slurm's \w+ plugin of distrib\b")
"""How plugins of ours begin; one that only speaks of distrib, or calls it, is the site's."""

_PARAMETER = re.compile(r"(?mi)^[ \t]*([A-Za-z_]+)[ \t]*=[ \t]*([^#\n]*?)[ \t]*(?:#.*)?$")


@dataclass(frozen=True)
class Wish:
    """``configuration``: slurm.conf; ``own_submit``: the site calls ours from its own plugin;
    ``health``: seconds between two looks at a node's features, 0 for none by slurmd."""

    configuration: Path
    places: Places
    own_submit: bool = False
    health_s: int = 30


def files(wish: Wish) -> dict[Path, tuple[str, int]]:
    """What is written: text and mode."""
    found = {wish.places.directory / name: (shell(name, wish.places), 0o755) for name in NAMES}
    found[wish.places.lua] = (lua("submit", wish.places), 0o644)
    if not wish.own_submit:
        plugin = wish.configuration.parent / "job_submit.lua"
        found[plugin] = (lua("job_submit", wish.places), 0o644)
    if wish.places.burst_buffer:
        directory = wish.configuration.parent
        found[directory / "burst_buffer.lua"] = (lua("burst_buffer", wish.places), 0o644)
        found[directory / "burst_buffer.conf"] = ("Directive=VM\n", 0o644)
    return found


def parameters(wish: Wish) -> dict[str, str]:
    """What is set in slurm.conf."""
    directory = wish.places.directory
    found = {"Prolog": f"{directory}/prolog", "Epilog": f"{directory}/epilog"}
    if not wish.own_submit:
        found["JobSubmitPlugins"] = "lua"
    if wish.health_s:
        found["HealthCheckProgram"] = f"{directory}/features"
        found["HealthCheckInterval"] = str(wish.health_s)
    if wish.places.burst_buffer:
        found["BurstBufferType"] = "burst_buffer/lua"
    return found


def with_block(text: str, wanted: Mapping[str, str]) -> str:
    """slurm.conf with our block in it, at its end. Raises Conflict where it is not ours to set."""
    rest = without_block(text)
    theirs = {name.lower(): value for name, value in _PARAMETER.findall(rest)}
    for name, value in wanted.items():
        there = theirs.get(name.lower())
        if there not in {None, "", "(null)", value}:
            raise Conflict(
                f"slurm.conf has {name}={there}",
                hint="call ours from yours, and leave it out here (--help says how)",
            )
    block = "".join(f"{name}={value}\n" for name, value in wanted.items())
    gap = "" if rest.endswith("\n") or not rest else "\n"
    return f"{rest}{gap}{BEGIN}\n{block}{END}\n"


def without_block(text: str) -> str:
    """slurm.conf as it was before."""
    return _BLOCK.sub("", text)


def install(wish: Wish, *, dry_run: bool) -> list[Path]:
    """Write what is not there as it should be; which files. Raises Conflict, StorageFailed."""
    conf = with_block(_read(wish.configuration), parameters(wish))
    wanted = {**files(wish), wish.configuration: (conf, 0o644)}
    changed = [file for file, (text, _) in wanted.items() if _present(file) != text]
    for file in changed:
        if file == wish.configuration or (there := _present(file)) is None:
            continue
        if not _is_ours(wish, file, there):
            raise Conflict(f"{file} is the site's own", hint="see docs/batch.md, Slurm")
    if not dry_run:
        # slurm.conf last: it names the others, and a prolog that is not there drains its node.
        for file in changed:
            _write(file, *wanted[file])
    return changed


def remove(wish: Wish, *, dry_run: bool) -> list[Path]:
    """Take all of it away; which files were there or are changed."""
    text = _read(wish.configuration)
    changed = [wish.configuration] if without_block(text) != text else []
    if changed and not dry_run:
        _write(wish.configuration, without_block(text), 0o644)
    for file in files(wish):
        if (there := _present(file)) is not None and _is_ours(wish, file, there):
            changed.append(file)
            if not dry_run:
                file.unlink()
    return changed


def _is_ours(wish: Wish, file: Path, there: str) -> bool:
    if file.parent != wish.configuration.parent:
        return "distrib" in there or "-m agent" in there
    return there == files(wish)[file][0] or _OURS.match(there) is not None


def _read(configuration: Path) -> str:
    try:
        return configuration.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"{configuration}: {error}", hint="--conf names slurm.conf") from None


def _present(file: Path) -> str | None:
    try:
        return file.read_text("utf-8", "replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageFailed(f"{file}: {error.strerror}", path=str(file)) from None


def _write(file: Path, text: str, mode: int) -> None:
    try:
        file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        durable.replace(file, text.encode())
        file.chmod(mode)
    except OSError as error:
        raise StorageFailed(f"{file}: {error.strerror}", path=str(file)) from None
