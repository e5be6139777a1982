"""``distrib list``: what an endorser and a wary reader do offline: sign a list, verify one."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from distrib.errors import ConfigInvalid, ExitStatus, NotFound
from distrib.trust.directory import load_trust_directory, read_certificates
from distrib.trust.endorse import DEFAULT_LIFETIME, stamp_list
from distrib.trust.fields import format_time, parse_time
from distrib.trust.imagelist import ImageList, parse_image_list
from distrib.trust.reasons import Reason
from distrib.trust.revocation import CrlPolicy
from distrib.trust.signature import MAX_MESSAGE_BYTES, sign_smime
from distrib.trust.sitelist import verify_site_list
from distrib.trust.verify import AuthorisedEndorser, Expectation, Verdict, verify


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


@click.group("list")
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
    bump: bool,
    digest: str,
    as_json: bool,
) -> None:
    """Sign the image list FILE (JSON).

    Dates are set, and the endorser's names are taken from the certificate. The version stays,
    unless --bump is given.
    """
    certificate, *chain = read_certificates(cert)
    now = datetime.now(UTC)
    content = stamp_list(
        _read(file), certificate, now=now, lifetime=timedelta(days=days), bump=bump
    )
    message = sign_smime(content, certificate, _read_key(key), tuple(chain), digest=digest)
    _replace(output, message)
    if bump:
        _replace(file, content)
    image_list = parse_image_list(content)
    if as_json:
        click.echo(json.dumps({"file": str(output), "list": list_as_dict(image_list)}))
    else:
        expires = format_time(image_list.expires)
        click.echo(
            f"{output}: {image_list.identifier} version {image_list.version}, "
            f"{len(image_list.images)} image(s), expires {expires}"
        )


@lists.command("verify")
@click.argument("file", type=FILE)
@click.option(
    "--trust",
    "trust_directory",
    type=click.Path(path_type=Path),
    required=True,
    help="Directory of CA certificates and CRLs.",
)
@click.option("--endorser", metavar="DN", help="Who must have signed it.")
@click.option("--ca", metavar="DN", help="Who must have certified the endorser.")
@click.option("--at", type=UtcTime(), metavar="TIME", help="As of this time; now if not given.")
@click.option(
    "--crls",
    type=click.Choice(["require", "if-present"]),
    default="require",
    show_default=True,
    help="Whether every CA on the path must have a CRL.",
)
@click.option("--site-list", is_flag=True, help="Verify as the list that a site publishes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify_command(
    *,
    file: Path,
    trust_directory: Path,
    endorser: str | None,
    ca: str | None,
    at: datetime | None,
    crls: CrlPolicy,
    site_list: bool,
    as_json: bool,
) -> None:
    """Verify the signed image list FILE: exit 0, or 3 with every reason."""
    if (endorser is None) != (ca is None):
        raise click.UsageError("--endorser and --ca go together")
    message = _read(file)
    now = at or datetime.now(UTC)
    trust = load_trust_directory(trust_directory)
    endorsers = None if endorser is None or ca is None else (AuthorisedEndorser(endorser, ca),)
    verdict = verify(
        message, trust=trust, expectation=Expectation(endorsers=endorsers), now=now, crls=crls
    )
    reasons = verdict.reasons
    if site_list:
        named = [reason for reason in reasons if reason.code == "endorser-not-authorised"]
        reasons = (*verify_site_list(message, trust=trust, now=now, crls=crls).reasons, *named)
    _print_verdict(file, verdict, reasons, as_json=as_json)
    if reasons:
        sys.exit(ExitStatus.TRUST_REFUSED)


def list_as_dict(image_list: ImageList) -> dict[str, object]:
    """A list as ``--json`` shows it."""
    return {
        "identifier": image_list.identifier,
        "version": image_list.version,
        "title": image_list.title,
        "created": format_time(image_list.created),
        "expires": format_time(image_list.expires),
        "endorser": {"dn": image_list.endorser.dn, "ca": image_list.endorser.ca},
        "uri": image_list.uri,
        "images": [
            {
                "identifier": image.identifier,
                "version": image.version,
                "title": image.title,
                "uri": image.uri,
                "size_bytes": image.size_bytes,
                "sha512": image.sha512,
                "format": image.format,
                "expires": format_time(image.expires) if image.expires else None,
            }
            for image in image_list.images
        ],
    }


def _print_verdict(
    file: Path, verdict: Verdict, reasons: tuple[Reason, ...], *, as_json: bool
) -> None:
    stated = verdict.image_list
    if as_json:
        document = {
            "accepted": not reasons,
            "reasons": [reason.as_dict() for reason in reasons],
            "list": list_as_dict(stated) if stated else None,
            "signer": {"dn": verdict.signer_dn, "ca": verdict.signer_ca},
            "digest_algorithm": verdict.digest_algorithm,
            "message_sha512": verdict.message_sha512,
        }
        click.echo(json.dumps(document))
        return
    if stated is not None:
        click.echo(f"list      {stated.identifier} version {stated.version}: {stated.title}")
        click.echo(
            f"created   {format_time(stated.created)}, expires {format_time(stated.expires)}"
        )
    if verdict.signer_dn:
        click.echo(f"signer    {verdict.signer_dn}")
        click.echo(f"certified {verdict.signer_ca}")
    for image in stated.images if stated else ():
        click.echo(f"image     {image.identifier}@{image.version}: {image.title}")
    click.echo(f"{file}: {'refused' if reasons else 'accepted'}")
    for reason in reasons:
        click.echo(f"  {reason}", err=True)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            # One byte more than is accepted, so that the verifier says "too-large".
            return file.read(MAX_MESSAGE_BYTES + 1)
    except OSError as error:
        raise NotFound(
            f"{path}: {error.strerror}", hint="check the path and its permissions", path=str(path)
        ) from None


def _read_key(path: Path) -> PrivateKeyTypes:
    data = _read(path)
    try:
        try:
            return load_pem_private_key(data, None)
        except TypeError:
            secret = click.prompt("Passphrase of the key", hide_input=True, err=True)
            return load_pem_private_key(data, str(secret).encode())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigInvalid(
            f"{path} is no private key that can be read here",
            hint="give a PEM private key, and its passphrase if it has one",
            path=str(path),
        ) from None


def _replace(path: Path, data: bytes) -> None:
    """Readers see the old file or the new one, whole."""
    partial = path.with_name(f".{path.name}.new")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        raise ConfigInvalid(
            f"{path} cannot be written: {error.strerror}",
            hint="check the directory and its permissions",
            path=str(path),
        ) from None
