"""The site's CRLs in the one file that the broker reads, followed as they are renewed.

mosquitto 2.0 reads ``crlfile`` again on SIGHUP, for connections that are made from then on; those
that stand it never looks at again. So a renewal is a SIGHUP, and a certificate that was revoked is
a restart: its holder is cut, and everybody else is back in a moment (their sessions are kept).
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from distrib.errors import ConfigInvalid
from distrib.trust.directory import load_trust_directory, read_crls
from distrib.trust.oldserials import old_serials_allowed

log = structlog.get_logger(__name__)

POLL_S = 5.0


class Change(Enum):
    """What a look at the CRLs brought."""

    NONE = "none"
    RENEWED = "renewed"
    REVOKED = "revoked"


class CrlFile:
    """``target`` holds what ``source`` (a PEM file, or a trust directory) holds.

    Where there is no CRL there is no file, and the broker checks none. OpenSSL refuses every
    certificate once a CRL of its CA is out of date: so does every node, with the site list.
    """

    def __init__(self, source: Path, target: Path) -> None:
        self._source = source
        self._target = target
        self._pem: bytes | None = None
        self._revoked: frozenset[tuple[str, int]] = frozenset()
        self._told_expired = False

    @property
    def path(self) -> Path | None:
        """The file, where there is one."""
        return self._target if self._pem else None

    def refresh(self) -> Change:
        """Look again, and write what is new. Raises ConfigInvalid for what cannot be read."""
        crls = self._read()
        self._warn_expired(crls)
        pem = b"".join(crl.public_bytes(Encoding.PEM) for crl in crls)
        if pem == self._pem:
            return Change.NONE
        revoked = frozenset(
            (crl.issuer.rfc4514_string(), serial) for crl in crls for serial in self._serials(crl)
        )
        # One that comes or goes changes the configuration, which is read at a start only.
        grown = not revoked <= self._revoked or bool(pem) != bool(self._pem)
        temporary = self._target.with_name(f".{self._target.name}.new")
        temporary.write_bytes(pem)
        temporary.replace(self._target)
        self._pem, self._revoked = pem, revoked
        return Change.REVOKED if grown else Change.RENEWED

    def _read(self) -> tuple[x509.CertificateRevocationList, ...]:
        if self._source.is_dir():
            return tuple(load_trust_directory(self._source).crls)
        try:
            return tuple(read_crls(self._source))
        except ConfigInvalid as error:
            raise ConfigInvalid(
                f"broker.crl: {error.message}",
                hint="a CRL (PEM or DER), or the directory of the site's CA and CRL",
                path=str(self._source),
            ) from None

    def _serials(self, crl: x509.CertificateRevocationList) -> list[int]:
        """Whom it names; entries are parsed late, and may be rubbish."""
        try:
            with old_serials_allowed():
                return [entry.serial_number for entry in crl]
        except ValueError as error:
            raise ConfigInvalid(
                f"broker.crl: {self._source} has entries that cannot be read: {error}"[:300],
                hint="fetch the CRL of the site's CA again",
                path=str(self._source),
            ) from None

    def _warn_expired(self, crls: tuple[x509.CertificateRevocationList, ...]) -> None:
        now = datetime.now(UTC)
        expired = [crl for crl in crls if (crl.next_update_utc or now) < now]
        if expired and not self._told_expired:
            log.error(
                "crl-expired",
                ca=expired[0].issuer.rfc4514_string(),
                hint="nobody can connect to the broker: renew the CRL of the site's CA",
            )
        self._told_expired = bool(expired)
