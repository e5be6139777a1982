"""How a rollout looks: a live table on a terminal, lines of what changed in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from distrib.cli.output import print_line, print_table
from distrib.printable import bytes_text, percent, printable

_TITLES = ("NODE", "STATE", "DONE", "BYTES", "RATE", "SINCE", "WHY")
_STYLES = {"ready": "green", "failed": "red", "offline": "dim", "pulling": "cyan"}
# What needs an eye comes first, where a terminal has no room for all.
_ORDER = (
    "failed",
    "blocked",
    "pulling",
    "verifying",
    "reserved",
    "waiting",
    "cancelled",
    "offline",
    "ready",
)
_READY = frozenset({"ready", "leased"})


def summary_line(rollout: dict[str, Any]) -> str:
    """One line on the whole rollout."""
    summary = rollout["summary"]
    complete = summary["ready"] == summary["targets"] > 0
    done = percent(summary["bytes_done"], summary["bytes_total"], complete=complete)
    counts = ", ".join(
        f"{summary[name]} {name}"
        for name in ("ready", "pulling", "waiting", "failed", "cancelled", "offline")
        if summary.get(name)
    )
    rate = f", {bytes_text(summary['rate_bps'])}/s" if summary["rate_bps"] else ""
    within = ", ".join(
        f"{way} ≤ {mbit_text(rollout[f'{way}_bps'])} a node"
        for way in ("download", "upload")
        if rollout.get(f"{way}_bps")
    )
    if rollout.get("transport", "swarm") != "swarm":
        within = ", ".join(filter(None, (within, f"transport {rollout['transport']}")))
    if rollout.get("traffic") == "background":
        within = ", ".join(filter(None, ("in the background", within)))
    rate += f" ({within})" if within else ""
    return (
        f"{rollout['id']} {rollout['alias'] or rollout['image']}: {rollout['state']},"
        f" {summary['targets']} nodes ({counts or 'nobody yet'}), {done} %{rate}"
    )


def mbit_text(rate_bps: int) -> str:
    """A cap, in the unit that it is given in."""
    return f"{rate_bps * 8 / 1e6:g} Mbit/s"


def caps_line(caps: dict[str, Any]) -> str:
    """The site's caps of what a node exchanges with its rack, its room and others; "": none."""
    within = [
        f"{tier} {way.removesuffix('_bps')} ≤ {mbit_text(cap)}"
        for tier, ways in caps.items()
        for way, cap in ways.items()
        if cap
    ]
    return f"caps of the site, a node: {', '.join(within)}" if within else ""


def print_rollout(rollout: dict[str, Any], caps: dict[str, Any]) -> None:
    """The summary with the caps in force, and a row a node. ``caps``: the site's."""
    print_line(summary_line(rollout))
    if within := caps_line(caps):
        print_line(within)
    print_table(_TITLES, [_row(row) for row in rollout["nodes"]], empty="no nodes")


def print_rollouts(rollouts: Iterable[dict[str, Any]]) -> None:
    """A row a rollout."""
    print_table(
        ("ROLLOUT", "IMAGE", "NODES", "STATE", "READY", "FAILED", "OFFLINE", "STARTED"),
        [
            (
                row["id"],
                row["alias"] or row["image"],
                row["selector"],
                row["state"],
                f"{row['summary']['ready']}/{row['summary']['targets']}",
                row["summary"]["failed"],
                row["summary"]["offline"],
                row["accepted_at"],
            )
            for row in rollouts
        ],
        empty="no rollouts",
    )


class Watch:
    """Shows a rollout as it goes on; ``with Watch() as watch: watch.show(rollout)``."""

    def __init__(self) -> None:
        self._console = Console()
        self._live: Live | None = None
        self._stack = ExitStack()
        self._seen: dict[str, tuple[str, str | None]] = {}
        self._summary = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            live = Live(console=self._console, auto_refresh=False)
            self._live = self._stack.enter_context(live)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def show(self, rollout: dict[str, Any]) -> None:
        """The newest of it."""
        if self._live is not None:
            self._live.update(self._table(rollout), refresh=True)
        else:
            self._lines(rollout)

    def _table(self, rollout: dict[str, Any]) -> Table:
        table = Table(box=None, title=Text(printable(summary_line(rollout))), title_justify="left")
        for title in _TITLES:
            table.add_column(title, no_wrap=True)
        rows = sorted(rollout["nodes"], key=_urgency)
        room = max(3, self._console.height - 4)
        for row in rows[:room]:
            style = _STYLES.get(row["state"], "")
            table.add_row(*(Text(printable(cell), style=style) for cell in _row(row)))
        if len(rows) > room:
            table.add_row(Text(f"… and {len(rows) - room} more", style="dim"))
        return table

    def _lines(self, rollout: dict[str, Any]) -> None:
        for row in rollout["nodes"]:
            now = (_state(row), row["reason"])
            if self._seen.get(row["node"]) != now:
                self._seen[row["node"]] = now
                name, state, done, _, _, _, why = _row(row)
                print_line(f"{name} {state} {done}" + (f" {why}" if why != "-" else ""))
        # Bytes and rates move all the time: a line of their own is for the counts.
        counts = {key: n for key, n in rollout["summary"].items() if key in _COUNTS}
        line = f"{rollout['state']} {counts}"
        if line != self._summary:
            self._summary = line
            print_line(summary_line(rollout))
        sys.stdout.flush()


_COUNTS = frozenset({"targets", "ready", "failed", "offline"})


def _state(row: dict[str, Any]) -> str:
    return str(row["state"] if row["online"] else "offline")


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    """One cell for each of ``_TITLES``."""
    done = percent(row["bytes_done"], row["bytes_total"], complete=row["state"] in _READY)
    rate = f"{bytes_text(row['rate_bps'])}/s" if row["rate_bps"] else "-"
    why = ": ".join(part for part in (row["reason"], row["text"]) if part)
    size = f"{bytes_text(row['bytes_done'])} of {bytes_text(row['bytes_total'])}"
    since = row["since"] or "-"
    return (row["node"], _state(row), f"{done} %", size, rate, since, why or "-")


def _urgency(row: dict[str, Any]) -> tuple[int, str]:
    state = _state(row)
    return (_ORDER.index(state) if state in _ORDER else len(_ORDER), row["node"])
