"""``distrib image want`` and ``wants``: what queued jobs want on the nodes."""

from __future__ import annotations

import time
from typing import Any

import click

from distrib.cli.client import ApiClient, connected
from distrib.cli.output import json_option, print_json, print_line, print_table
from distrib.errors import TimedOut

_LOOK_S = 1.0
_SAY_AGAIN_S = 60.0


@click.command("want")
@click.argument("ref", metavar="IMAGE")
@click.option("--job", required=True, metavar="ID", help="Which job wants it: SCHEDULER:ID.")
@click.option("--user", default="", help="Whose job it is; needed where the audience is named.")
@click.option("--nodes", default="", metavar="SEL", help="Where it may run, e.g. label:queue=virt.")
@click.option("--wait", is_flag=True, help="Until a node has it.")
@click.option("--timeout", "timeout_s", type=float, help="Wait no longer than these seconds.")
@click.option("--done", is_flag=True, help="The job wants it no more.")
@json_option
def want(
    *,
    ref: str,
    job: str,
    user: str,
    nodes: str,
    wait: bool,
    timeout_s: float | None,
    done: bool,
    as_json: bool,
) -> None:
    """Have IMAGE brought to a few nodes, for a job that is queued; for batch systems."""
    if done and wait:
        raise click.UsageError("--done and --wait exclude each other")
    body = {"image": ref, "job": job, "user": user, "nodes": nodes}
    with connected() as client:
        if done:
            document = client.delete("/wants", image=ref, job=job)
        else:
            document = client.post("/wants", body)
            if wait:
                document = _wait(client, body, document, timeout_s)
    if as_json:
        print_json(document)
    elif done:
        print_line(f"{job} wants {ref} no more")
    else:
        print_line(_line(document))


@click.command("wants")
@json_option
def wants(*, as_json: bool) -> None:
    """What queued jobs want, and how far it is."""
    with connected() as client:
        document = client.get("/wants")
    if as_json:
        print_json(document)
        return
    print_table(
        ("IMAGE", "JOB", "USER", "STATE", "READY", "COMING", "ROLLOUT", "UNTIL"),
        [
            (
                row["image"],
                row["job"],
                row["user"] or "-",
                row["state"],
                row["ready"] or "-",
                row["coming"] or "-",
                row["rollout"] or "-",
                row["until"],
            )
            for row in document["wants"]
        ],
        empty="no job wants an image",
    )


def _wait(
    client: ApiClient, body: dict[str, Any], document: dict[str, Any], timeout_s: float | None
) -> dict[str, Any]:
    began = said = time.monotonic()
    while document["state"] != "ready":
        now = time.monotonic()
        if timeout_s is not None and now - began >= timeout_s:
            raise TimedOut(
                f"image {document['image']} is on no node after {timeout_s:g} s",
                hint="it goes on: distrib image wants, rollout status",
                image=document["image"],
            )
        time.sleep(_LOOK_S)
        if now - said >= _SAY_AGAIN_S:
            document, said = client.post("/wants", body), now
        else:
            document = _found(client, document)
    return document


def _found(client: ApiClient, document: dict[str, Any]) -> dict[str, Any]:
    rows = client.get("/wants")["wants"]
    same = [
        row for row in rows if (row["image"], row["job"]) == (document["image"], document["job"])
    ]
    return same[0] if same else document


def _line(document: dict[str, Any]) -> str:
    where = document["ready"] or document["coming"]
    by = f" by {document['rollout']}" if document["rollout"] and not document["ready"] else ""
    on = f" on {', '.join(where)}" if where else ""
    return f"{document['image']} {document['state']}{on}{by}"
