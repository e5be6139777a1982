"""Who the site is, where it signs: its names, its catalogue certificate, the keys of its orders.

Certificate and key may be replaced while the controller runs (``FollowedIdentity``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from distrib.catalogue.passphrase import CREDENTIAL, VARIABLE
from distrib.errors import ConfigInvalid, DistribError
from distrib.trust.directory import read_certificates
from distrib.trust.verify import CATALOGUE_ROLE, roles_of

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class SiteIdentity:
    """``identifier`` is the UUID of the site list, ``url`` where it is fetched."""

    site: str
    identifier: str
    url: str
    certificate: x509.Certificate
    key: PrivateKeyTypes
    chain: tuple[x509.Certificate, ...] = ()
    controller_keys: tuple[Ed25519PublicKey, ...] = ()
    email: str = ""

    @classmethod
    def load(
        cls,
        *,
        site: str,
        identifier: str,
        url: str,
        certificate: Path,
        key: Path,
        passphrase: bytes | None = None,
        controller_keys: tuple[Ed25519PublicKey, ...] = (),
        email: str = "",
    ) -> Self:
        """Read the catalogue certificate (first in its file, its chain after it) and its key.

        ``passphrase`` is used where the key is encrypted. Raises ConfigInvalid for files that
        cannot be read, a passphrase that is wrong or missing, another certificate's key, and a
        certificate without the role.
        """
        first, *chain = read_certificates(certificate)
        if CATALOGUE_ROLE not in roles_of(first):
            raise ConfigInvalid(
                f"{certificate}: the certificate lacks the role {CATALOGUE_ROLE}",
                hint=f"it needs a SubjectAltName URI urn:distrib:role:{CATALOGUE_ROLE}",
                path=str(certificate),
            )
        private = _read_key(key, passphrase)
        if private.public_key() != first.public_key():
            raise ConfigInvalid(
                f"{key} is not the key of {certificate}", hint="check both", path=str(key)
            )
        return cls(
            site=site,
            identifier=identifier,
            url=url,
            certificate=first,
            key=private,
            chain=tuple(chain),
            controller_keys=controller_keys,
            email=email,
        )


class FollowedIdentity:
    """The identity as its files are now. ``load`` reads them, ``files`` are what it reads.

    Files that do not fit each other (one is replaced after the other) leave the last good identity
    in force, and are told once.
    """

    def __init__(self, load: Callable[[], SiteIdentity], files: tuple[Path, ...]) -> None:
        self._load = load
        self._files = files
        self._seen = self._state()
        self._identity = load()

    def __call__(self) -> SiteIdentity:
        """The identity; its files are read again where they have changed."""
        state = self._state()
        if state != self._seen:
            self._seen = state
            try:
                self._identity = self._load()
            except DistribError as error:
                log.warning("catalogue-key-not-replaced", code=error.code, why=error.message)
            else:
                serial = f"{self._identity.certificate.serial_number:x}"
                log.info("catalogue-key-replaced", serial=serial)
        return self._identity

    def _state(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_state_of(file) for file in self._files)


def _state_of(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read_key(key: Path, passphrase: bytes | None) -> PrivateKeyTypes:
    hint = "a PEM private key, readable for the controller"
    try:
        pem = key.read_bytes()
    except OSError as error:
        raise ConfigInvalid(f"{key}: {error.strerror}", hint=hint, path=str(key)) from None
    # PKCS 8 says it in the label, the older form in a header of its own (RFC 1421).
    encrypted = b"ENCRYPTED" in pem
    if encrypted and passphrase is None:
        raise ConfigInvalid(
            f"{key}: the key has a passphrase, and none was given",
            hint=f"give it as systemd credential {CREDENTIAL}, in {VARIABLE},"
            " or in a file (catalogue.passphrase_file)",
            path=str(key),
        )
    try:
        return load_pem_private_key(pem, password=passphrase if encrypted else None)
    except (ValueError, TypeError) as error:
        if encrypted:
            raise ConfigInvalid(
                f"{key}: cannot be opened with the passphrase that was given",
                hint="is it the passphrase of this key?",
                path=str(key),
            ) from None
        raise ConfigInvalid(f"{key}: {error}"[:300], hint=hint, path=str(key)) from None
