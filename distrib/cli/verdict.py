"""A verdict as ``distrib list verify`` shows it: of an image list, or of a Marketplace entry."""

from __future__ import annotations

from dataclasses import dataclass

import click

from distrib.cli.output import print_json, print_line
from distrib.printable import printable
from distrib.trust.entry import Entry
from distrib.trust.fields import format_time
from distrib.trust.imagelist import ImageList
from distrib.trust.marketplace import EntryVerdict
from distrib.trust.reasons import Reason
from distrib.trust.verify import Verdict

LIST = "image-list"
ENTRY = "marketplace-entry"


@dataclass(frozen=True, slots=True)
class Shown:
    """A verdict in the one shape of both kinds. ``document`` is None where it could not be read."""

    kind: str
    document: dict[str, object] | None
    reasons: tuple[Reason, ...]
    lines: tuple[str, ...]
    signer_dn: str
    signer_ca: str
    digest_algorithm: str
    message_sha512: str

    @property
    def accepted(self) -> bool:
        """Whether nothing speaks against it."""
        return self.document is not None and not self.reasons

    def as_dict(self) -> dict[str, object]:
        """What ``--json`` prints."""
        return {
            "kind": self.kind,
            "accepted": self.accepted,
            "reasons": [reason.as_dict() for reason in self.reasons],
            "list": self.document,
            "signer": {"dn": self.signer_dn, "ca": self.signer_ca},
            "digest_algorithm": self.digest_algorithm,
            "message_sha512": self.message_sha512,
        }


def of_list(verdict: Verdict, reasons: tuple[Reason, ...]) -> Shown:
    """A list's verdict, with the ``reasons`` that count."""
    stated = verdict.image_list
    lines: list[str] = []
    if stated is not None:
        lines = [
            f"list      {stated.identifier} version {stated.version}: {stated.title}",
            f"created   {format_time(stated.created)}, expires {format_time(stated.expires)}",
            f"endorser  {stated.endorser.dn}",
        ]
        lines += [
            f"image     {image.identifier}@{image.version}: {image.title}"
            for image in stated.images
        ]
    return Shown(
        kind=LIST,
        document=list_as_dict(stated) if stated else None,
        reasons=reasons,
        lines=tuple(lines),
        signer_dn=verdict.signer_dn,
        signer_ca=verdict.signer_ca,
        digest_algorithm=verdict.digest_algorithm,
        message_sha512=verdict.message_sha512,
    )


def of_entry(verdict: EntryVerdict) -> Shown:
    """An entry's verdict."""
    entry = verdict.entry
    lines: list[str] = []
    if entry is not None:
        expires = f", expires {format_time(entry.expires)}" if entry.expires else ""
        lines = [
            f"entry     {entry.identifier}: {entry.title}",
            f"created   {format_time(entry.created)}{expires}",
            f"endorser  {entry.endorser.email}, {entry.endorser.subject}",
        ]
    return Shown(
        kind=ENTRY,
        document=entry_as_dict(entry) if entry else None,
        reasons=verdict.reasons,
        lines=tuple(lines),
        signer_dn=verdict.signer_dn,
        signer_ca=verdict.signer_ca,
        digest_algorithm=verdict.digest_algorithm,
        message_sha512=verdict.message_sha512,
    )


def show(source: str, shown: Shown, *, as_json: bool) -> None:
    """Print it: what it says, who signed it, and on standard error every reason."""
    if as_json:
        print_json(shown.as_dict())
        return
    for line in shown.lines:
        print_line(line)
    if shown.signer_dn:
        print_line(f"signer    {shown.signer_dn}")
        print_line(f"certified {shown.signer_ca}")
    print_line(f"{source}: {'accepted' if shown.accepted else 'refused'}")
    for reason in shown.reasons:
        click.echo(f"  {printable(f'{reason} ({reason.hint})')}", err=True)


def list_as_dict(image_list: ImageList) -> dict[str, object]:
    """A list as ``--json`` shows it."""
    return {
        "identifier": image_list.identifier,
        "version": image_list.version,
        "title": image_list.title,
        "created": format_time(image_list.created),
        "expires": format_time(image_list.expires),
        "endorser": {
            "dn": image_list.endorser.dn,
            "ca": image_list.endorser.ca,
            "email": image_list.endorser.email,
        },
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


def entry_as_dict(entry: Entry) -> dict[str, object]:
    """An entry in the shape of a list of one image, with what only entries have beside it."""
    expires = format_time(entry.expires) if entry.expires else None
    return {
        "identifier": entry.identifier,
        "version": format_time(entry.created),
        "title": entry.title,
        "created": format_time(entry.created),
        "expires": expires,
        "endorser": {
            "dn": entry.endorser.subject,
            "ca": entry.endorser.issuer,
            "email": entry.endorser.email,
        },
        "deprecated": entry.deprecated,
        "images": [
            {
                "identifier": entry.identifier,
                "version": entry.version,
                "title": entry.title,
                "uri": entry.locations[0] if entry.locations else "",
                "locations": list(entry.locations),
                "size_bytes": entry.size_bytes,
                "sha512": entry.checksums.get("SHA-512"),
                "checksums": dict(entry.checksums),
                "format": entry.format or None,
                "expires": expires,
            }
        ],
    }
