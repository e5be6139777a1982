"""``distrib tsunami keys``: the key by which nodes fetch from each other."""

from __future__ import annotations

import getpass
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import click

from distrib.cli.output import json_option, print_json, print_line
from distrib.cli.tsunami_hosts import CONNECTING, end_by, read_hosts
from distrib.errors import DistribError, Forbidden
from distrib.tsunami.farmkeys import FarmKeys, Stage
from distrib.tsunami.hosts import PlainHost
from distrib.tsunami.keys import Identity, KnownHosts
from distrib.tsunami.ssh import connect

DIRECTORY = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)

NEXT: Final = {
    Stage.STEADY: "bring {admitted} to every node: distrib-agent serve-pieces --install",
    Stage.ANNOUNCED: "bring {admitted} to every node: distrib-agent serve-pieces --install;"
    " distrib tsunami keys check; then rotate again",
    Stage.SWITCHED: "bring {farm} to every node, as tsunami.identity; then rotate again",
}


@click.group("keys")
def keys() -> None:
    """The key by which nodes fetch from each other: make it, rotate it."""


@keys.command("make")
@click.argument("directory", type=DIRECTORY)
@json_option
def make(directory: Path, *, as_json: bool) -> None:
    """Make a farm's first key in DIRECTORY."""
    found = FarmKeys(directory)
    found.make()
    _print(found, as_json=as_json)


@keys.command("rotate")
@click.argument("directory", type=DIRECTORY)
@json_option
def rotate(directory: Path, *, as_json: bool) -> None:
    """Do the next of three steps: make a key, use it, admit the old one no more.

    Between two steps, bring to the nodes what the step before has changed.
    """
    found = FarmKeys(directory)
    found.rotate()
    _print(found, as_json=as_json)


@keys.command("show")
@click.argument("directory", type=DIRECTORY)
@json_option
def show(directory: Path, *, as_json: bool) -> None:
    """Where the rotation is, and what is to be done next."""
    _print(FarmKeys(directory), as_json=as_json)


@keys.command("check")
@click.argument("directory", type=DIRECTORY)
@click.option("--hosts", "hosts_file", required=True, metavar="FILE", help="- for stdin.")
@click.option("--known-hosts", type=FILE, required=True, help="The hosts' keys.")
@click.option("--user", default=getpass.getuser, show_default="you", help="Unless named.")
@json_option
def check(directory: Path, *, hosts_file: str, known_hosts: Path, user: str, as_json: bool) -> None:
    """Log in to every host with each of the keys. Exit 8 when some do not admit one."""
    found = FarmKeys(directory)
    stage, identities = found.stage, found.identities()
    known = KnownHosts.read(known_hosts)
    hosts = read_hosts(hosts_file, user)
    with ThreadPoolExecutor(CONNECTING) as pool:
        faults = list(pool.map(lambda host: _fault(host, identities, known), hosts))
    if as_json:
        rows = [
            {"host": host.name, "state": "admitted"}
            if fault is None
            else {"host": host.name, "state": "failed", "error": fault.as_dict()}
            for host, fault in zip(hosts, faults, strict=True)
        ]
        print_json({"stage": stage.value, "keys": sorted(identities), "hosts": rows})
    else:
        for host, fault in zip(hosts, faults, strict=True):
            told = f"admits {', '.join(sorted(identities))}"
            print_line(f"{host.name} {told}" if fault is None else fault.message)
    end_by(faults, as_json=as_json, hint="bring admitted.pub there before the next step")


def _fault(
    host: PlainHost, identities: dict[str, Identity], known: KnownHosts
) -> DistribError | None:
    for name, identity in identities.items():
        try:
            connect(
                host.address,
                host.port,
                host.user,
                identity=identity,
                trust=known.of(host.address, host.port),
            ).close()
        except Forbidden as error:
            return type(error)(f"{host.name}: does not admit {name}", hint=error.hint)
        except DistribError as error:
            return error
    return None


def _print(found: FarmKeys, *, as_json: bool) -> None:
    stage, fingerprints = found.stage, found.fingerprints()
    told = NEXT[stage].format(farm=found.farm, admitted=found.admitted)
    if as_json:
        print_json(
            {
                "stage": stage.value,
                "identity": str(found.farm),
                "admitted": str(found.admitted),
                "fingerprints": fingerprints,
                "next": told,
            }
        )
        return
    print_line(f"{found.directory}: {stage.value}; admitted: {', '.join(fingerprints)}")
    print_line(told)
