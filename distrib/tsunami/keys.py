"""Which host keys are believed, and which key is ours. Nothing is ever added by itself.

A known_hosts file is read as OpenSSH writes it (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT): names and
``[name]:port``, wildcards, hashed names, ``@cert-authority`` and ``@revoked``.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import paramiko
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    SSHCertificate,
    SSHCertificateType,
    load_ssh_public_identity,
)

from distrib.errors import DistribError, ExitStatus, NotFound, OperatorError

KNOWN_HOSTS_MAX_BYTES: Final = 16 << 20
SSH_PORT: Final = 22

_ALGORITHMS: Final = {
    "ssh-ed25519": ("ssh-ed25519",),
    "ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256"),
    "ecdsa-sha2-nistp256": ("ecdsa-sha2-nistp256",),
    "ecdsa-sha2-nistp384": ("ecdsa-sha2-nistp384",),
    "ecdsa-sha2-nistp521": ("ecdsa-sha2-nistp521",),
}
_CERTIFICATES: Final = tuple(
    f"{algorithm}-cert-v01@openssh.com"
    for algorithms in _ALGORITHMS.values()
    for algorithm in algorithms
)


class HostKeyRefused(DistribError):
    """A host shows another key than the one that is known of it, or none is known."""

    code = "host-key-refused"
    exit_status = ExitStatus.TRUST_REFUSED


@dataclass(frozen=True)
class HostTrust:
    """What one host may prove itself with: ``keys`` and ``authorities`` as in known_hosts without
    the host ("ssh-ed25519 AAAA..."); ``names`` are what a certificate may say that it is."""

    keys: tuple[str, ...] = ()
    authorities: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    revoked: tuple[str, ...] = ()

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The host key algorithms to ask for: only what could be believed."""
        plain = [name for key in self.keys for name in _ALGORITHMS.get(key.split()[0], ())]
        return (*(_CERTIFICATES if self.authorities else ()), *dict.fromkeys(plain))

    def check(self, blob: bytes, *, host: str, now_s: float | None = None) -> None:
        """Raise HostKeyRefused unless ``blob`` (a key, or a certificate) is to be believed."""
        shown = _key_text(blob)
        if shown.split()[0].endswith("-cert-v01@openssh.com"):
            self._check_certificate(shown, host, time.time() if now_s is None else now_s)
            return
        if shown in self.revoked or shown not in self.keys:
            raise HostKeyRefused(
                f"{host}: its host key is {fingerprint(blob)}, which is not the one that is known",
                hint="a new installation, or somebody in between: compare it on the host itself",
                host=host,
            )

    def _check_certificate(self, shown: str, host: str, now_s: float) -> None:
        why = ""
        try:
            certificate = load_ssh_public_identity(shown.encode())
        except (ValueError, UnsupportedAlgorithm) as error:
            certificate, why = None, str(error)
        if isinstance(certificate, SSHCertificate):
            why = self._fault_of(certificate, now_s)
        if why:
            raise HostKeyRefused(
                f"{host}: its host certificate is not to be believed: {why}",
                hint="have it signed again by the site's SSH authority",
                host=host,
            )

    def _fault_of(self, certificate: SSHCertificate, now_s: float) -> str:
        authority = _openssh(certificate.signature_key())
        own = _openssh(certificate.public_key())
        principals = [name.decode(errors="replace") for name in certificate.valid_principals]
        faults = (
            (authority not in self.authorities or authority in self.revoked, "another authority"),
            (own in self.revoked, "its key is revoked"),
            (certificate.type is not SSHCertificateType.HOST, "it is not a host's"),
            (not set(principals) & set(self.names), f"it is for {', '.join(principals) or 'all'}"),
            (not certificate.valid_after <= now_s < certificate.valid_before, "not valid now"),
            (bool(certificate.critical_options), "a critical option that is not known"),
        )
        why = next((text for wrong, text in faults if wrong), "")
        if not why:
            try:
                certificate.verify_cert_signature()
            except (InvalidSignature, UnsupportedAlgorithm):
                why = "its signature does not hold"
        return why


class KnownHosts:
    """The hosts of a known_hosts file."""

    def __init__(self, text: str, *, where: str = "known_hosts") -> None:
        self._lines = [
            line for raw in text.splitlines() if (line := raw.strip()) and not line.startswith("#")
        ]
        for number, line in enumerate(self._lines, 1):
            if len(_fields(line)[2].split()) < 2:
                raise OperatorError(f"{where}: entry {number} is not one", hint="see sshd(8)")

    @classmethod
    def read(cls, file: Path) -> KnownHosts:
        """Raises NotFound, OperatorError."""
        try:
            if file.stat().st_size > KNOWN_HOSTS_MAX_BYTES:
                raise OperatorError(f"{file}: too large", hint="is it a known_hosts file?")
            return cls(file.read_text("utf-8", errors="replace"), where=str(file))
        except OSError as error:
            raise NotFound(f"{file}: {error.strerror}", hint="name a known_hosts file") from None

    def of(self, host: str, port: int) -> HostTrust:
        """What is known of a host at a port."""
        name = host if port == SSH_PORT else f"[{host}]:{port}"
        found: dict[str, list[str]] = {"": [], "@cert-authority": [], "@revoked": []}
        for line in self._lines:
            mark, hosts, key = _fields(line)
            if mark in found and _matches(hosts, name):
                found[mark].append(" ".join(key.split()[:2]))
        return HostTrust(
            tuple(found[""]), tuple(found["@cert-authority"]), (host,), tuple(found["@revoked"])
        )


@dataclass(frozen=True)
class Identity:
    """Our key."""

    key: paramiko.PKey

    @classmethod
    def read(cls, file: Path, certificate: Path | None = None) -> Identity:
        """A private key file, and its certificate where there is one beside it (``-cert.pub``).

        Raises NotFound; OperatorError for one that others can read, has a passphrase, or is
        none."""
        try:
            mode = file.stat().st_mode
            if stat.S_IMODE(mode) & 0o077:
                raise OperatorError(f"{file}: others may read it", hint=f"chmod 600 {file}")
            key = paramiko.PKey.from_path(file)
        except OSError as error:
            raise NotFound(f"{file}: {error.strerror}", hint="name a private key file") from None
        except paramiko.PasswordRequiredException:
            raise OperatorError(
                f"{file}: has a passphrase", hint="use a key without one, kept for this alone"
            ) from None
        except (paramiko.SSHException, paramiko.UnknownKeyType, ValueError, TypeError):
            raise OperatorError(f"{file}: no private key", hint="ssh-keygen -t ed25519") from None
        beside = certificate or file.with_name(f"{file.name}-cert.pub")
        if certificate is not None or beside.is_file():
            key.load_certificate(beside.read_text("ascii").strip())
        return cls(key)


def fingerprint(blob: bytes) -> str:
    """As ``ssh-keygen -l`` shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def _openssh(key: object) -> str:
    raw = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)  # type: ignore[attr-defined]
    return " ".join(raw.decode().split()[:2])


def _key_text(blob: bytes) -> str:
    size = int.from_bytes(blob[:4])
    return f"{blob[4 : 4 + size].decode('ascii', 'replace')} {base64.b64encode(blob).decode()}"


def _fields(line: str) -> tuple[str, str, str]:
    mark, rest = line.split(None, 1) if line.startswith("@") and " " in line else ("", line)
    hosts, _, key = rest.partition(" ")
    return mark, hosts, key


def _matches(hosts: str, name: str) -> bool:
    if hosts.startswith("|1|"):
        return _matches_hash(hosts, name)
    patterns: Sequence[str] = hosts.split(",")
    plain = _escape(name)
    if any(one.startswith("!") and plain(one[1:]) for one in patterns):
        return False
    return any(plain(one) for one in patterns if not one.startswith("!"))


def _escape(name: str) -> Callable[[str], bool]:
    # Brackets are part of names with a port, not classes of characters.
    return lambda pattern: fnmatchcase(name.lower(), pattern.lower().replace("[", "[[]"))


def _matches_hash(hosts: str, name: str) -> bool:
    try:
        _, _, salt, digest = hosts.split("|")
        known = base64.b64decode(digest)
        made = hmac.digest(base64.b64decode(salt), name.encode(), "sha1")
    except ValueError:
        return False
    return hmac.compare_digest(known, made)
