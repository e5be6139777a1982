"""``distrib-agent doctor``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from agent.cache.findings import Finding
from agent.settings import DEFAULT_FILE, AgentSettings
from agent.socket.client import ask
from distrib.errors import DistribError, ExitStatus
from distrib.printable import printable

ANSWER_LIMIT_S = 10.0


@click.command()
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help=f"Settings file (TOML).  [default: {DEFAULT_FILE} where it exists]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_obj
def doctor(socket: Path, config: Path | None, as_json: bool) -> int:
    """What is wrong on this node, and the command to run; also while the agent is down.

    Exit: 0 when nothing is, or only warnings; 6 for a fault of the node."""
    # A hook that only asks for a lease must not load this.
    from agent.examining import examine  # noqa: PLC0415

    file = config or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    settings = AgentSettings.load(file=file)
    found = (*ask_agent(socket), *examine(settings))
    if as_json:
        click.echo(json.dumps({"findings": [one.as_dict() for one in found]}, indent=2))
    else:
        for one in found:
            click.echo(f"{one.level}: {one.code}: {printable(one.subject)}: {printable(one.text)}")
            click.echo(f"    run: {one.command}")
        if not found:
            click.echo("nothing found")
    return ExitStatus.UNREACHABLE if any(one.level == "error" for one in found) else ExitStatus.DONE


def ask_agent(socket: Path) -> Iterator[Finding]:
    """What the running agent knows; that it does not answer, where it does not."""
    try:
        status = ask(socket, "status", timeout_s=ANSWER_LIMIT_S)
    except DistribError as error:
        yield Finding(
            "agent-down",
            str(socket),
            error.message,
            "systemctl status distrib-agent; journalctl -u distrib-agent -n 50",
        )
        return
    report = status["report"]
    for code, count in report["refused"].items():
        yield Finding(
            "refused",
            code,
            f"{count} messages were not believed: another writes to the broker, or a clock is off",
            "journalctl -u distrib-agent | grep refused",
            "warning",
        )
    for image in report["images"]:
        yield from _of_image(image, report["node"])


def _of_image(image: dict[str, Any], node: str) -> Iterator[Finding]:
    name = f"{image['identifier']}@{image['version']}"
    why = f"{image.get('reason')}: {image['text']}"
    if image["state"] == "failed":
        again = f"distrib rollout start {name} --nodes {node}  # once it is mended"
        yield Finding("image-failed", name, why, again)
    elif image["state"] in ("ready", "leased") and image.get("reason") == "hash-failed":
        ends = "distrib-agent leases  # it is repaired once those on it have ended"
        yield Finding("image-damaged", name, why, ends)
