"""``distrib testpki``: certificates for demos and tests. A farm takes its from a real CA."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import click

from distrib.errors import NotFound
from distrib.trust.directory import read_certificates
from distrib.trust.testpki import CERTIFICATE_DAYS, Authority, Issued, Role, create_demo

DIRECTORY = click.Path(path_type=Path, file_okay=False)


@click.group("testpki")
def testpki() -> None:
    """Certificates for DEMOS AND TESTS ONLY: keys without passphrase, no policy."""


@testpki.command("init")
@click.argument("directory", type=DIRECTORY)
@click.option("--site", default="Example Site", show_default=True, help="The site's name.")
@click.option("--node", "nodes", multiple=True, help="A worker node; may be given several times.")
@click.option("--endorser", default="Endorser", show_default=True, help="The endorser's CN.")
@click.option("--experiment", default="Experiment", show_default=True, help="The experiment.")
@click.option("--host", "hosts", multiple=True, help="A further name or address of the head node.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def init_command(
    *,
    directory: Path,
    site: str,
    nodes: tuple[str, ...],
    endorser: str,
    experiment: str,
    hosts: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make a site's CA and an experiment's CA in DIRECTORY, and certificates for every role.

    For demos and tests only.
    """
    demo = create_demo(
        directory,
        site=site,
        nodes=nodes,
        endorser=endorser,
        experiment=experiment,
        hosts=hosts,
        now=datetime.now(UTC),
    )
    made = {
        "site": str(demo.site.directory),
        "site_trust": str(demo.site.trust_directory),
        "experiment": str(demo.experiment.directory),
        "experiment_trust": str(demo.experiment.trust_directory),
        "certificates": [str(entry.certificate_path) for entry in demo.issued],
    }
    if as_json:
        click.echo(json.dumps(made))
        return
    click.echo("For demos and tests only.")
    click.echo(f"the site's trust directory        {made['site_trust']}")
    click.echo(f"the experiment's trust directory  {made['experiment_trust']}")
    for entry in demo.issued:
        click.echo(str(entry.certificate_path))


@testpki.command("issue")
@click.argument("authority", type=DIRECTORY)
@click.option("--role", type=click.Choice([role.value for role in Role]), required=True)
@click.option("--name", default="", help="CN of a node or an endorser; else of the files only.")
@click.option("--host", "hosts", multiple=True, help="DNS name or address for SubjectAltName.")
@click.option("--days", type=click.IntRange(1), default=CERTIFICATE_DAYS, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def issue_command(
    *, authority: Path, role: str, name: str, hosts: tuple[str, ...], days: int, as_json: bool
) -> None:
    """Issue a certificate by the CA in AUTHORITY (as DIR/site). For demos and tests only."""
    issued = Authority.load(authority).issue(
        Role(role), name, now=datetime.now(UTC), hosts=hosts, days=days
    )
    _print_issued(issued, as_json=as_json)


@testpki.command("revoke")
@click.argument("authority", type=DIRECTORY)
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def revoke_command(authority: Path, name: str, as_json: bool) -> None:
    """Revoke the certificate NAME (as in certs/NAME.pem) and write a new CRL."""
    issuer = Authority.load(authority)
    path = issuer.certificate_path(name)
    if not path.exists():
        raise NotFound(f"{path} is not there", hint=f"see {path.parent}", path=str(path))
    crl = issuer.revoke(read_certificates(path)[0], now=datetime.now(UTC))
    click.echo(json.dumps({"crl": str(crl)}) if as_json else f"revoked {name}; CRL {crl}")


def _print_issued(issued: Issued, *, as_json: bool) -> None:
    files = {"certificate": str(issued.certificate_path), "key": str(issued.key_path)}
    if as_json:
        click.echo(json.dumps(files))
    else:
        click.echo(f"{files['certificate']}\n{files['key']}")
