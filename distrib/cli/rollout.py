"""``distrib rollout``: bring an image to nodes, and watch it arrive."""

from __future__ import annotations

import sys
from typing import Any

import click

from distrib.cli.client import ApiClient, connected, path_of
from distrib.cli.output import json_option, print_json, print_line
from distrib.cli.rollout_view import Watch, print_rollout, print_rollouts, summary_line
from distrib.cli.watching import follow, verdict
from distrib.errors import NotFound

_BITS_PER_BYTE = 8


@click.group("rollout")
def rollout() -> None:
    """Bring an image to nodes, and watch it."""


@rollout.command("start")
@click.argument("image")
@click.option(
    "--nodes",
    required=True,
    metavar="SELECTOR",
    help="all, or e.g. wn001,wn0*,rack=R1+label:gpu=no ('+' all of, ',' any of).",
)
@click.option("--wait", is_flag=True, help="Until it has ended: exit 8 if nodes failed.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0), help="Seconds to --wait.")
@click.option("--deadline", "deadline_s", type=click.FloatRange(min=1), help="Seconds to be ready.")
@click.option("--background", is_flag=True, help="Make way for the nodes' other traffic.")
@click.option(
    "--transport",
    type=click.Choice(["swarm", "tsunami", "auto"]),
    default="swarm",
    show_default=True,
    help="How pieces come; a node's label `transport` goes before it.",
)
@click.option("--download-mbit", type=click.FloatRange(min=0), help="Cap of each node, in Mbit/s.")
@click.option("--upload-mbit", type=click.FloatRange(min=0), help="The same for what it serves.")
@json_option
def start(
    *,
    image: str,
    nodes: str,
    wait: bool,
    timeout_s: float | None,
    deadline_s: float | None,
    background: bool,
    transport: str,
    download_mbit: float | None,
    upload_mbit: float | None,
    as_json: bool,
) -> None:
    """Bring IMAGE (ALIAS or UUID, optionally @VERSION) to the nodes of SELECTOR."""
    if timeout_s is not None and not wait:
        raise click.UsageError("--timeout goes with --wait")
    body: dict[str, Any] = {"image": image, "nodes": nodes, "deadline_s": deadline_s}
    body["transport"] = transport
    if download_mbit:
        body["download_bps"] = int(download_mbit * 1_000_000 / _BITS_PER_BYTE)
    if upload_mbit:
        body["upload_bps"] = int(upload_mbit * 1_000_000 / _BITS_PER_BYTE)
    if background:
        body["traffic"] = "background"
    with connected() as client:
        document = client.post("/rollouts", body)
        if wait:
            _follow(client, document["id"], timeout_s=timeout_s, as_json=as_json)
            return
    if as_json:
        print_json(document)
    else:
        print_line(summary_line(document))


@rollout.command("status")
@click.argument("name", metavar="[ROLLOUT]", required=False)
@click.option("--watch", is_flag=True, help="Until it has ended: exit 8 if nodes failed.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0), help="Seconds to --watch.")
@json_option
def status(*, name: str | None, watch: bool, timeout_s: float | None, as_json: bool) -> None:
    """Where every node stands; without ROLLOUT, in the newest one."""
    if timeout_s is not None and not watch:
        raise click.UsageError("--timeout goes with --watch")
    with connected() as client:
        wanted = name or _newest(client)
        if watch:
            _follow(client, wanted, timeout_s=timeout_s, as_json=as_json)
            return
        document = client.get(path_of("rollouts", wanted))
        caps = {} if as_json else client.get("/caps")["caps"]
    if as_json:
        print_json(document)
    else:
        print_rollout(document, caps)


@rollout.command("list")
@json_option
def list_command(*, as_json: bool) -> None:
    """Every rollout, newest first."""
    with connected() as client:
        document = client.get("/rollouts")
    if as_json:
        print_json(document)
    else:
        print_rollouts(document["rollouts"])


@rollout.command("abort")
@click.argument("name", metavar="ROLLOUT")
@json_option
def abort(*, name: str, as_json: bool) -> None:
    """Nodes stop pulling; what they have stays."""
    with connected() as client:
        document = client.post(path_of("rollouts", name, "abort"), {})
    if as_json:
        print_json(document)
    else:
        print_line(summary_line(document))


def _newest(client: ApiClient) -> str:
    rollouts = client.get("/rollouts")["rollouts"]
    if not rollouts:
        raise NotFound("there is no rollout yet", hint="distrib rollout start IMAGE --nodes all")
    return str(rollouts[0]["id"])


def _follow(client: ApiClient, name: str, *, timeout_s: float | None, as_json: bool) -> None:
    last: dict[str, Any] = {}
    if as_json:
        for document in follow(client, name, timeout_s=timeout_s):
            last = document
    else:
        with Watch() as watch:
            for document in follow(client, name, timeout_s=timeout_s):
                last = document
                watch.show(document)
    error = verdict(last)
    if not as_json:
        if error is not None:
            raise error
        return
    # One document either way: the rollout, and what is to be said of it.
    print_json(last if error is None else last | {"error": error.as_dict()})
    if error is not None:
        sys.exit(error.exit_status)
