"""Who the site is, where it signs: its names, its catalogue certificate, the keys of its orders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from distrib.errors import ConfigInvalid
from distrib.trust.directory import read_certificates
from distrib.trust.verify import CATALOGUE_ROLE, roles_of


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
        controller_keys: tuple[Ed25519PublicKey, ...] = (),
        email: str = "",
    ) -> Self:
        """Read the catalogue certificate (first in its file, its chain after it) and its key.

        Raises ConfigInvalid for files that cannot be read, and a certificate without the role.
        """
        first, *chain = read_certificates(certificate)
        if CATALOGUE_ROLE not in roles_of(first):
            raise ConfigInvalid(
                f"{certificate}: the certificate lacks the role {CATALOGUE_ROLE}",
                hint=f"it needs a SubjectAltName URI urn:distrib:role:{CATALOGUE_ROLE}",
                path=str(certificate),
            )
        try:
            private = load_pem_private_key(key.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigInvalid(
                f"{key}: {error}"[:300],
                hint="a PEM private key without a passphrase, readable for the controller",
                path=str(key),
            ) from None
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
