"""``distrib tsunami``: a file to hosts that have nothing but an sshd."""

from __future__ import annotations

import getpass
import hashlib
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import click

from distrib.cli.client import connected, path_of
from distrib.cli.output import json_option, print_json, print_line, print_table
from distrib.cli.progress import progress
from distrib.cli.tsunami_hosts import CONNECTING, end_by, read_hosts
from distrib.cli.tsunami_keys import keys
from distrib.errors import DistribError, NotFound, OperatorError, Revoked
from distrib.printable import bytes_text
from distrib.swarm import IMAGE_FILE
from distrib.tsunami.hosts import PlainHost
from distrib.tsunami.keys import Identity, KnownHosts
from distrib.tsunami.push import Outcome, Push, chunk_mib_for
from distrib.tsunami.remote import MIB, Job, Remote

FILE = click.Path(path_type=Path, dir_okay=False)
READ_BYTES = 4 << 20
USABLE, WITHDRAWN = ("approved", "superseded"), ("denied", "revoked")
AGAIN = "call it again: what is there stays"

_PLAIN_PATH = re.compile(r"/[A-Za-z0-9._+@,=:/-]*[A-Za-z0-9._+@,=:-]")


def _reaching(command: Callable[..., None]) -> Callable[..., None]:
    """What names hosts, keys and the target."""
    for option in (
        click.option("--hosts", "hosts_file", required=True, metavar="FILE", help="- for stdin."),
        click.option("--to", required=True, metavar="PATH", help="Where it goes on the hosts."),
        click.option("--identity", type=FILE, required=True, metavar="KEY", help="A private key."),
        click.option("--known-hosts", type=FILE, required=True, help="The hosts' keys."),
        click.option("--user", default=getpass.getuser, show_default="you", help="Unless named."),
        click.option("--images", type=click.Path(path_type=Path), help="The head's image store.",
                     default=Path("/var/lib/distrib/images"), show_default=True),
        click.option("--chunk-mib", type=click.IntRange(1, 1024), help="MiB of a chunk."),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group("tsunami")
def tsunami() -> None:
    """Files to hosts that have nothing but an sshd, which pass them on to each other."""


tsunami.add_command(keys)


@tsunami.command("push")
@click.argument("source", metavar="IMAGE|FILE")
@_reaching
@click.option("--slots", type=click.IntRange(1, 8), default=4, show_default=True,
              help="Transfers at a time, each way, of each host and of this machine.")  # fmt: skip
@click.option("--deadline", "deadline_s", type=click.FloatRange(min=1), help="Seconds to be done.")
@json_option
def push(
    *,
    source: str,
    hosts_file: str,
    to: str,
    identity: Path,
    known_hosts: Path,
    user: str,
    images: Path,
    chunk_mib: int | None,
    slots: int,
    deadline_s: float | None,
    as_json: bool,
) -> None:
    """Bring IMAGE (on the head) or FILE to every host of a list, checked there by its SHA-512.

    Interrupted, it goes on from there when it is called again. Exit 8 when some hosts failed.
    """
    hosts = read_hosts(hosts_file, user)
    target = _target(to)
    key, known = Identity.read(identity), KnownHosts.read(known_hosts)
    file, sha512 = _find(source, images)
    sha512 = sha512 or _sha512(file, silent=as_json)
    began_s = time.monotonic()
    total_bytes = file.stat().st_size * len(hosts)
    if not total_bytes:
        raise OperatorError(f"{file}: empty", hint="name a file with something in it")

    def told(outcome: Outcome) -> None:
        if not as_json and outcome.error is not None:
            hint = f" ({outcome.error.hint})" if outcome.error.hint else ""
            print_line(f"{outcome.error.message}{hint}")

    with progress(f"pushing {file.name}", total_bytes, silent=as_json) as advance:
        under_way = Push(
            file,
            hosts,
            sha512=sha512,
            to=target,
            identity=key,
            known_hosts=known,
            slots=slots,
            chunk_mib=chunk_mib,
            deadline_s=deadline_s,
            on_progress=advance,
            on_outcome=told,
        )
        under_way.run()
    _print(under_way, time.monotonic() - began_s, as_json=as_json)
    faults = [one.error for one in under_way.outcomes.values()]
    end_by(faults, as_json=as_json, hint=AGAIN)


@tsunami.command("clean")
@click.argument("source", metavar="IMAGE|FILE")
@_reaching
@json_option
def clean(
    *,
    source: str,
    hosts_file: str,
    to: str,
    identity: Path,
    known_hosts: Path,
    user: str,
    images: Path,
    chunk_mib: int | None,
    as_json: bool,
) -> None:
    """Remove what pushes of IMAGE or FILE left on hosts: processes, keys, partial files."""
    hosts = read_hosts(hosts_file, user)
    target = _target(to)
    key, known = Identity.read(identity), KnownHosts.read(known_hosts)
    file, sha512 = _find(source, images)
    size_bytes = file.stat().st_size
    job = Job(
        sha512 or _sha512(file, silent=as_json),
        size_bytes,
        chunk_mib or chunk_mib_for(size_bytes),
        target,
    )

    def one(host: PlainHost) -> DistribError | None:
        remote = Remote(host, job, identity=key, known_hosts=known, tell=lambda _: None)
        try:
            remote.clean()
        except DistribError as error:
            return error
        return None

    with ThreadPoolExecutor(CONNECTING) as pool:
        faults = list(pool.map(one, hosts))
    rows = [
        {"host": host.name, "state": "clean"}
        if fault is None
        else {"host": host.name, "state": "failed", "error": fault.as_dict()}
        for host, fault in zip(hosts, faults, strict=True)
    ]
    if as_json:
        print_json({"hosts": rows})
    else:
        for host, fault in zip(hosts, faults, strict=True):
            print_line(f"{host.name} clean" if fault is None else fault.message)
    end_by(faults, as_json=as_json, hint=AGAIN)


# -- what was meant -------------------------------------------------------------------------------


def _target(to: str) -> PurePosixPath:
    if not _PLAIN_PATH.fullmatch(to) or ".." in PurePosixPath(to).parts:
        raise OperatorError(
            f"--to {to}: not a path that every shell reads alike",
            hint="an absolute path of letters, digits and ._+@,=:-",
        )
    return PurePosixPath(to)


def _find(source: str, images: Path) -> tuple[Path, str | None]:
    """The file that is meant, and its SHA-512 where the site vouches for it."""
    if _is_readable(file := Path(source)):
        return file, None
    if "/" in source:
        raise NotFound(f"{source}: no such file", hint="name a file, or an image of the site")
    with connected() as client:
        found: dict[str, Any] = client.get(path_of("images", source))
    infohash, sha512 = found.get("infohash"), found.get("sha512")
    if found["state"] in WITHDRAWN:
        raise Revoked(f"image {source}: {found['state']}", hint="it goes to no host", image=source)
    if found["state"] not in USABLE or not infohash or not sha512:
        raise NotFound(f"image {source}: not approved yet", hint="distrib image approve")
    stored = images / str(infohash) / IMAGE_FILE
    if not _is_readable(stored):
        raise NotFound(
            f"{stored}: not here", hint="push from the head, or name its store with --images"
        )
    return stored, str(sha512)


def _is_readable(file: Path) -> bool:
    """False where there is no such file. Raises NotFound where it is not for us."""
    try:
        if not file.is_file():
            return False
        with file.open("rb"):
            return True
    except OSError as error:
        raise NotFound(f"{file}: {error.strerror}", hint="as a user who may read it") from None


def _sha512(file: Path, *, silent: bool) -> str:
    digest, done = hashlib.sha512(), 0
    with (
        file.open("rb") as stream,
        progress(f"hashing {file.name}", file.stat().st_size, silent=silent) as advance,
    ):
        while data := stream.read(READ_BYTES):
            digest.update(data)
            done += len(data)
            advance(done)
    return digest.hexdigest()


# -- what came of it ------------------------------------------------------------------------------


def _print(push: Push, seconds: float, *, as_json: bool) -> None:
    outcomes = push.outcomes.values()
    if as_json:
        print_json(
            {
                "sha512": push.job.sha512,
                "size_bytes": push.size_bytes,
                "chunk_bytes": push.job.chunk_mib * MIB,
                "seconds": round(seconds, 3),
                "origin_bytes": push.origin_bytes,
                "hosts": [_row(push, outcome) for outcome in outcomes],
                "set_aside": [
                    {"host": host, "reason": reason}
                    for host, reason in push.schedule.were_set_aside.items()
                ],
            }
        )
        return
    print_table(
        ("HOST", "STATE", "FROM HERE", "TO OTHERS"),
        [
            (
                one.host.name,
                one.state,
                bytes_text(one.origin_bytes),
                bytes_text(one.served_bytes),
            )
            for one in outcomes
        ],
        empty="no hosts",
    )
    for host, reason in push.schedule.were_set_aside.items():
        print_line(f"{host} was set aside as a source: {reason}")
    done = sum(one.state == "done" for one in outcomes)
    print_line(f"{done} of {len(outcomes)} hosts have {push.job.to}, in {seconds:.1f} s")


def _row(push: Push, outcome: Outcome) -> dict[str, object]:
    row: dict[str, object] = {
        "host": outcome.host.name,
        "state": outcome.state,
        "bytes": push.size_bytes if outcome.state == "done" else push.held_bytes(outcome),
        "resumed_bytes": outcome.resumed_bytes,
        "origin_bytes": outcome.origin_bytes,
        "served_bytes": outcome.served_bytes,
    }
    return row if outcome.error is None else row | {"error": outcome.error.as_dict()}
