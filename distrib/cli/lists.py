"""``distrib list``: what an endorser and a wary reader do offline: sign a list, verify one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar

import click

from distrib.cli.client import ClientSettings, load_settings
from distrib.cli.documents import read_document, read_file, replace_file
from distrib.cli.output import print_json, print_line
from distrib.cli.signing_key import read_signing_key
from distrib.cli.verdict import Shown, list_as_dict, of_entry, of_list, show
from distrib.command import Lazy, LazyGroup
from distrib.errors import ExitStatus
from distrib.trust.chain import TrustMaterial
from distrib.trust.directory import load_trust_directory, read_certificates
from distrib.trust.endorse import DEFAULT_LIFETIME, stamp_list
from distrib.trust.fields import format_time, parse_time
from distrib.trust.imagelist import MAX_CONTENT_BYTES, parse_image_list
from distrib.trust.marketplace import EndorserByEmail, EntryExpectation, verify_entry
from distrib.trust.namespaces import PolicyUse
from distrib.trust.revocation import CrlPolicy
from distrib.trust.signature import MAX_MESSAGE_BYTES, sign_smime
from distrib.trust.sitelist import verify_site_list
from distrib.trust.verify import AuthorisedEndorser, Expectation, verify
from distrib.trust.xmltext import looks_like_xml


class UtcTime(click.ParamType[datetime]):
    """A time as ``2026-03-01T12:00:00Z``."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Parse, or fail as click does."""
        if isinstance(value, datetime):
            return value
        try:
            return parse_time(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


FILE = click.Path(path_type=Path, dir_okay=False)


class Lists(LazyGroup):
    """What needs a head is imported when it is called."""

    commands_by_name: ClassVar[Mapping[str, Lazy]] = {
        "sign": Lazy("distrib.cli.lists", "sign_command", "Sign an image list, offline."),
        "verify": Lazy("distrib.cli.lists", "verify_command", "Verify a signed list, offline."),
        "subscribe": Lazy("distrib.cli.subscriptions", "subscribe", "Follow a list by its URL."),
        "unsubscribe": Lazy("distrib.cli.subscriptions", "unsubscribe", "Follow it no more."),
        "poll": Lazy("distrib.cli.subscriptions", "poll", "Fetch lists now."),
        "show": Lazy("distrib.cli.subscriptions", "show", "Subscriptions, and how they are."),
    }


@click.group("list", cls=Lists)
def lists() -> None:
    """Image lists: sign, verify, subscribe."""


@lists.command("sign")
@click.argument("file", type=FILE)
@click.option(
    "--cert", type=FILE, required=True, help="Your certificate (PEM), its chain after it."
)
@click.option("--key", type=FILE, required=True, help="Its private key (PEM).")
@click.option("-o", "--output", type=FILE, required=True, help="Where the signed list goes.")
@click.option(
    "--days",
    type=click.IntRange(1, 3650),
    default=DEFAULT_LIFETIME.days,
    show_default=True,
    help="Days until the list expires.",
)
@click.option(
    "--passphrase-file",
    type=FILE,
    help="Holds the key's passphrase; else $DISTRIB_KEY_PASSPHRASE, else it is asked for.",
)
@click.option("--bump", is_flag=True, help="Take the next version, and write it back to FILE.")
@click.option(
    "--digest", type=click.Choice(["sha512", "sha256"]), default="sha512", show_default=True
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def sign_command(
    *,
    file: Path,
    cert: Path,
    key: Path,
    output: Path,
    days: int,
    passphrase_file: Path | None,
    bump: bool,
    digest: str,
    as_json: bool,
) -> None:
    """Sign the image list FILE (JSON).

    Dates are set, and the endorser's names are taken from the certificate. The version stays,
    unless --bump is given; the first one is 0.0.0.
    """
    certificate, *chain = read_certificates(cert)
    private_key = read_signing_key(key, passphrase_file)
    now = datetime.now(UTC)
    draft = read_file(file, max_bytes=MAX_CONTENT_BYTES)
    content = stamp_list(draft, certificate, now=now, lifetime=timedelta(days=days), bump=bump)
    message = sign_smime(content, certificate, private_key, tuple(chain), digest=digest)
    replace_file(output, message)
    if bump:
        replace_file(file, content)
    image_list = parse_image_list(content)
    if as_json:
        print_json({"file": str(output), "list": list_as_dict(image_list)})
    else:
        expires = format_time(image_list.expires)
        print_line(
            f"{output}: {image_list.identifier} version {image_list.version}, "
            f"{len(image_list.images)} image(s), expires {expires}"
        )


@lists.command("verify")
@click.argument("source", metavar="FILE|URL|-")
@click.option(
    "--trust",
    "trust_directory",
    type=click.Path(path_type=Path),
    required=True,
    help="Directory of CA certificates, CRLs and policies.",
)
@click.option(
    "--endorser",
    metavar="DN|EMAIL",
    help="Who must have signed it; of a Marketplace entry an e-mail address will do.",
)
@click.option("--ca", metavar="DN", help="Who must have certified the endorser.")
@click.option("--at", type=UtcTime(), metavar="TIME", help="As of this time; now if not given.")
@click.option("--identifier", metavar="UUID", help="Which list (or entry) it must be.")
@click.option(
    "--last-version",
    metavar="V",
    help="The version that was seen last; of an entry the time when it was created.",
)
@click.option(
    "--crls",
    type=click.Choice(["require", "if-present"]),
    default="require",
    show_default=True,
    help="Whether every CA on the path must have a CRL.",
)
@click.option(
    "--policies",
    type=click.Choice(["require", "if-present"]),
    default="if-present",
    show_default=True,
    help="Whether every CA on the path must have a namespaces or signing_policy file.",
)
@click.option(
    "--allow-sha1-endorser",
    "sha1_endorsers",
    metavar="EMAIL|DN",
    multiple=True,
    help="Who may sign a Marketplace entry with SHA-1, beside sha1_endorsers in client.toml."
    " May be repeated.",
)
@click.option(
    "--ca-file", type=FILE, help="CA of the web server (PEM), in the place of the system's."
)
@click.option("--site-list", is_flag=True, help="Verify as the list that a site publishes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify_command(
    *,
    source: str,
    trust_directory: Path,
    endorser: str | None,
    ca: str | None,
    at: datetime | None,
    identifier: str | None,
    last_version: str | None,
    crls: CrlPolicy,
    policies: PolicyUse,
    sha1_endorsers: tuple[str, ...],
    ca_file: Path | None,
    site_list: bool,
    as_json: bool,
) -> None:
    """Verify a signed image list, or an entry of StratusLab's Marketplace: exit 0, or 3 with every
    reason.

    It is read from a file, an https URL, or standard input (-). Which of the two it is shows in it.
    """
    by_email = endorser is not None and ca is None and "@" in endorser and "=" not in endorser
    if (endorser is None) != (ca is None) and not by_email:
        raise click.UsageError("--endorser and --ca go together")
    trust = load_trust_directory(trust_directory, policies=policies)
    message = read_document(source, max_bytes=MAX_MESSAGE_BYTES, ca_file=ca_file)
    now = at or datetime.now(UTC)
    authorised = None if endorser is None or ca is None else AuthorisedEndorser(endorser, ca)
    if looks_like_xml(message):
        by = EndorserByEmail(endorser) if by_email and endorser is not None else authorised
        entry_expectation = EntryExpectation(
            endorsers=None if by is None else (by,),
            identifier=identifier,
            last_created=_last_created(last_version),
            sha1_endorsers=frozenset((*sha1_endorsers, *_site_settings().sha1_endorsers)),
        )
        verdict = verify_entry(
            message, trust=trust, expectation=entry_expectation, now=now, crls=crls
        )
        shown = of_entry(verdict)
    elif by_email:
        raise click.UsageError("--endorser is an e-mail address: a list is signed by --ca and DN")
    else:
        expectation = Expectation(
            endorsers=None if authorised is None else (authorised,),
            identifier=identifier,
            last_version=last_version,
        )
        shown = _verify_list(message, trust, expectation, now, crls, site_list=site_list)
    show(source, shown, as_json=as_json)
    if not shown.accepted:
        sys.exit(ExitStatus.TRUST_REFUSED)


def _verify_list(
    message: bytes,
    trust: TrustMaterial,
    expectation: Expectation,
    now: datetime,
    crls: CrlPolicy,
    *,
    site_list: bool,
) -> Shown:
    verdict = verify(message, trust=trust, expectation=expectation, now=now, crls=crls)
    if not site_list:
        return of_list(verdict, verdict.reasons)
    as_site = verify_site_list(
        message,
        trust=trust,
        now=now,
        last_version=expectation.last_version,
        identifier=expectation.identifier,
        crls=crls,
    )
    named = [reason for reason in verdict.reasons if reason.code == "endorser-not-authorised"]
    return of_list(verdict, (*as_site.reasons, *named))


def _site_settings() -> ClientSettings:
    return load_settings(click.get_current_context().find_root().obj)


def _last_created(version: str | None) -> datetime | None:
    if version is None:
        return None
    try:
        return parse_time(version)
    except ValueError as error:
        raise click.UsageError(f"--last-version of an entry is a time: {error}") from None
