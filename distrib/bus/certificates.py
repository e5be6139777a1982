"""Certificates of the site's CA that came with a connection: whether they hold now.

TLS has found the path and the dates; it reads CRLs once, if at all, and never looks at a connection
again. So who serves or asks over HTTPS within the site has each request's certificate looked up
here, in CRLs that are read again as fetch-crl renews them.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509
from cryptography.x509.oid import NameOID

from distrib.errors import ConfigInvalid
from distrib.trust.chain import TrustMaterial, check_chain
from distrib.trust.directory import load_trust_directory, read_certificates
from distrib.trust.oldserials import old_serials_allowed

log = structlog.get_logger(__name__)

LOOK_S: Final = 10.0
"""So long a verdict stands, and CRLs are not read again."""

KNOWN_MAX: Final = 10_000


class SiteCertificates:
    """``ca``: the file that TLS believes; ``directory``: the site's trust directory with its CRLs.

    An issuer without a CRL passes, one that is there counts, expired ones too."""

    def __init__(
        self, ca: Path, directory: Path, *, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises ConfigInvalid."""
        self._ca = ca
        self._directory = directory
        self._now_s = now_s
        self._lock = threading.Lock()
        self._material = self._read()
        self._read_s = now_s()
        self._complaint = ""
        self._faults: dict[bytes, str] = {}

    async def fault(self, der: bytes) -> str:
        """Why the certificate is not to be believed, in a line; empty where it is."""
        known = None if self._is_due() else self._faults.get(hashlib.sha256(der).digest())
        return await asyncio.to_thread(self._fault, der) if known is None else known

    def _fault(self, der: bytes) -> str:
        with self._lock:
            if self._is_due():
                self._refresh()
            fault = self._look(der)
            if len(self._faults) < KNOWN_MAX:
                self._faults[hashlib.sha256(der).digest()] = fault
            return fault

    def _is_due(self) -> bool:
        return self._now_s() - self._read_s >= LOOK_S

    def _look(self, der: bytes) -> str:
        try:
            with old_serials_allowed():
                certificate = x509.load_der_x509_certificate(der)
        except ValueError as error:
            return f"not a certificate: {error}"
        reasons = check_chain(
            certificate, trust=self._material, now=datetime.now(UTC), crls="if-present"
        )
        return "; ".join(reason.message for reason in reasons)

    def _refresh(self) -> None:
        self._read_s = self._now_s()
        self._faults.clear()
        try:
            self._material, self._complaint = self._read(), ""
        except ConfigInvalid as error:
            # Being renewed, or broken: what was read before counts until its CRLs are out of date.
            if error.message != self._complaint:
                log.warning("trust-not-read", why=error.message, hint=error.hint)
            self._complaint = error.message

    def _read(self) -> TrustMaterial:
        material = load_trust_directory(self._directory)
        own = read_certificates(self._ca)
        anchors = tuple(one for one in own if one.subject == one.issuer)
        others = tuple(one for one in own if one not in anchors)
        return replace(
            material,
            anchors=anchors or material.anchors,
            intermediates=(*material.intermediates, *others),
        )


def common_name(der: bytes) -> str:
    """The certificate's CN, which is the node's name in this site; empty where it has none."""
    try:
        with old_serials_allowed():
            subject = x509.load_der_x509_certificate(der).subject
    except ValueError:
        return ""
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""
