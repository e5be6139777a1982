"""``distrib-agent status``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from agent.socket.client import ask
from distrib.printable import printable


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the answer as it came.")
@click.pass_obj
def status(socket: Path, as_json: bool) -> None:
    """What this node holds and does."""
    answer = ask(socket, "status")
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    report = answer["report"]
    age_s = answer["site_list_age_s"]
    trust = "no site list" if age_s is None else f"site list {age_s / 60:.0f} min old"
    leasable = "" if answer["leasable"] else ", NO NEW LEASES"
    click.echo(
        f"{report['node']}: agent {answer['version']}, {trust}{leasable},"
        f" cache {_mib(report['used_bytes'])} of {_mib(report['capacity_bytes'])} MiB"
    )
    click.echo(_traffic(answer["traffic"]))
    for image in report["images"]:
        click.echo(_line(image) + _scrubbed(answer["scrub"].get(image["infohash"])))


def _traffic(traffic: dict[str, Any]) -> str:
    """The link, and what flows over it at most."""
    known = traffic["farm_generation"]
    parts = [
        f"  link {traffic['interface'] or 'unknown'} {_mbit(traffic['link_bps'])} Mbit/s",
        "no map of the farm" if known is None else f"map of the farm {known}",
    ]
    for tier, caps in traffic["caps"].items():
        if any(caps.values()):
            down, up = caps["download_bps"], caps["upload_bps"]
            parts.append(f"{tier} {_cap(down)} down {_cap(up)} up")
    if traffic["background"]:
        back = traffic["background"]
        parts.append(f"background {_mbit(back['download'])} down {_mbit(back['upload'])} up")
    return printable(", ".join(parts))


def _cap(rate_bps: int) -> str:
    return str(_mbit(rate_bps)) if rate_bps else "no cap"


def _mbit(rate_bps: int) -> int:
    return rate_bps * 8 // 1_000_000


def _line(image: dict[str, Any]) -> str:
    share = f"{100 * image['bytes_done'] // max(image['bytes_total'], 1)} %"
    flags = " active" if image["active"] else ""
    why = f" {image['reason']}: {image['text']}" if image.get("reason") else ""
    brought = image.get("by_transport", {})
    ways = ", ".join(f"{_mib(size)} MiB by {name}" for name, size in brought.items())
    came = f" ({ways})" if ways else ""
    return printable(
        f"  {image['identifier']}@{image['version']} {image['state']} {share}{came}"
        f" leases {image['leases']}{flags}{why}"
    )


def _scrubbed(scrub: dict[str, Any] | None) -> str:
    if scrub is None:
        return ""
    reading = f", {_mib(scrub['bytes_read'])} MiB read again" if scrub["bytes_read"] else ""
    return f" good {scrub['good_at'][:10]}{reading}"


def _mib(size_bytes: int) -> int:
    return size_bytes >> 20
