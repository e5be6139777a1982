"""``distrib-agent lease``, ``release``, ``leases``, ``pin``, ``unpin``."""

from __future__ import annotations

import json
import os
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from agent.socket.client import ask
from distrib.errors import OperatorError
from distrib.printable import printable

_json = click.option("--json", "as_json", is_flag=True, help="Print the answer as it came.")


@click.command()
@click.argument("image")
@click.option("--for", "for_s", type=float, metavar="SECONDS", help="Lease for a time.")
@click.option(
    "--pid",
    type=click.IntRange(min=1),
    help="Lease for the life of this process.  [default: the caller]",
)
@click.option("--user", metavar="NAME", help="Lease for this user (administrators).")
@click.option("--job", metavar="SCHEDULER:ID", help="Lease for the life of a batch job.")
@click.option("--probe", metavar="CMD", help="With --job: exits 0 while the job lives.")
@click.option("--cow-mib", type=int, help="Room that the instance may fill.")
@click.option("--scratch-mib", type=int, help="Size of a scratch disk.  [default: none]")
@click.option("--block/--file", "block", default=None, help="A block device, or a file.")
@_json
@click.pass_obj
def lease(
    socket: Path,
    image: str,
    for_s: float | None,
    pid: int | None,
    user: str | None,
    job: str | None,
    probe: str | None,
    cow_mib: int | None,
    scratch_mib: int | None,
    block: bool | None,
    as_json: bool,
) -> None:
    """Give a writable instance of IMAGE (ALIAS or UUID, optionally @VERSION).

    It lives as long as its holder: by default the process that called this command. In a script,
    `$( … )` is a process of its own that ends at once; name the script:

    \b
        read -r lease format device < <(distrib-agent lease IMAGE --pid $$)
    """
    holder: dict[str, Any] = {"kind": "process", "pid": pid or os.getppid()}
    if for_s is not None:
        until = _in(for_s)
        holder = {"kind": "time", "until": until.isoformat()}
    if job is not None or probe is not None:
        holder = _job(job, probe)
    answer = ask(
        socket,
        "lease",
        image=image,
        user=user,
        holder=holder,
        cow_bytes=cow_mib << 20 if cow_mib else None,
        scratch_bytes=scratch_mib << 20 if scratch_mib else None,
        block=block,
    )
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    scratch = f" scratch {answer['scratch']}" if answer["scratch"] else ""
    click.echo(f"{answer['lease']} {answer['format']} {answer['device']}{scratch}")


def _job(job: str | None, probe: str | None) -> dict[str, Any]:
    scheduler, colon, identifier = (job or "").partition(":")
    try:
        command = shlex.split(probe or "")
    except ValueError as error:
        raise OperatorError(f"--probe: {error}", hint="write it as for a shell") from None
    if not (scheduler and colon and identifier and command):
        raise OperatorError(
            "a lease for a job has --job SCHEDULER:ID and --probe",
            hint="--job gridengine:4711.1 --probe '/usr/lib/distrib/job-alive 4711'",
        )
    return {"kind": "job", "scheduler": scheduler, "job": identifier, "probe": command}


def _in(seconds: float) -> datetime:
    try:
        until = datetime.now(UTC) + timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        until = None
    if until is None or seconds <= 0:
        raise OperatorError(
            f"--for {seconds:g}: not a time to lease for", hint="give seconds, more than 0"
        )
    return until


@click.command()
@click.argument("lease_id", metavar="LEASE")
@_json
@click.pass_obj
def release(socket: Path, lease_id: str, as_json: bool) -> None:
    """Give LEASE (its name, or SCHEDULER:ID of its job) back; its instance is removed."""
    answer = ask(socket, "release", lease=lease_id)
    click.echo(json.dumps(answer, indent=2) if as_json else f"released {answer['released']}")


@click.command("signal")
@click.argument("lease_id", metavar="LEASE")
@click.argument("name", metavar="SIGNAL")
@_json
@click.pass_obj
def send_signal(socket: Path, lease_id: str, name: str, as_json: bool) -> None:
    """Send SIGNAL to the guest in LEASE: STOP and CONT suspend and resume it, TERM ends its job."""
    answer = ask(socket, "signal", lease=lease_id, signal=name)
    click.echo(json.dumps(answer, indent=2) if as_json else f"sent {answer['signal']}")


@click.command()
@_json
@click.pass_obj
def leases(socket: Path, as_json: bool) -> None:
    """Your leases; all of them for an administrator."""
    answer = ask(socket, "leases")
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    for one in answer["leases"]:
        flag = " DAMAGED" if one["damaged"] else ""
        if one["filled_percent"] is not None:
            flag = f" {one['filled_percent']:.0f}%{flag}"
        told = f"{one['lease']} {one['image']} {one['user']} {one['since']} {one['device']}{flag}"
        click.echo(printable(told))


@click.command()
@click.argument("image")
@_json
@click.pass_obj
def pin(socket: Path, image: str, as_json: bool) -> None:
    """Keep IMAGE, whatever room is needed."""
    _pin(socket, "pin", image, as_json)


@click.command()
@click.argument("image")
@_json
@click.pass_obj
def unpin(socket: Path, image: str, as_json: bool) -> None:
    """Let IMAGE go when room is needed."""
    _pin(socket, "unpin", image, as_json)


def _pin(socket: Path, op: str, image: str, as_json: bool) -> None:
    answer = ask(socket, op, image=image)
    word = "pinned" if answer["pinned"] else "not pinned"
    told = printable(f"{answer['image']} {word}")
    click.echo(json.dumps(answer, indent=2) if as_json else told)
