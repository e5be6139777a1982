"""Which names a CA may certify: the policy files that grid sites keep beside a CA's certificate.

IGTF distributes two of them per CA, ``HASH.namespaces`` and ``HASH.signing_policy``; where a CA has
both, the first counts. A CA that has one may only issue subjects that it permits, wherever in a
path it stands. ``policyfiles`` reads them. A file that cannot be read with one meaning permits
nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Literal

from cryptography import x509
from OpenSSL import crypto

from distrib.trust.names import DistinguishedName, slash_form
from distrib.trust.reasons import Reason, ReasonCode

_HASH_STEM = re.compile(r"[0-9a-f]{8}", re.IGNORECASE)

#: ``if-present``: a CA without any policy file may certify every name (a site's own CA has none).
PolicyUse = Literal["require", "if-present"]


class Wildcard(StrEnum):
    """What stands for other characters in a pattern."""

    ANY_TEXT = "any-text"
    ANY_CHAR = "any-char"


@dataclass(frozen=True, slots=True)
class SubjectPattern:
    """A pattern over a whole subject in the form of ``DistinguishedName.flat``."""

    text: str
    tokens: tuple[str | Wildcard, ...]

    def matches(self, subject: str) -> bool:
        """Whether all of ``subject`` fits; at most len(tokens) x len(subject) steps."""
        token = position = 0
        star, resume = -1, 0
        while position < len(subject):
            current = self.tokens[token] if token < len(self.tokens) else None
            if current is Wildcard.ANY_TEXT:
                star, resume = token, position
                token += 1
            elif current is Wildcard.ANY_CHAR or current == subject[position]:
                token += 1
                position += 1
            elif star >= 0:
                # The last wildcard takes one character more, and all after it is tried again.
                resume += 1
                token, position = star + 1, resume
            else:
                return False
        return all(rest is Wildcard.ANY_TEXT for rest in self.tokens[token:])

    def matches_loosely(self, subject: str) -> bool:
        """The same without regard to case and to how many spaces there are, as X.520 compares."""
        tokens = (token if isinstance(token, Wildcard) else token.lower() for token in self.tokens)
        loose = SubjectPattern(self.text, tuple(tokens))
        return loose.matches(re.sub(" +(?= |/|$)|(?<==) +", "", subject.lower()))


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """What ``issuer`` may (or, not ``permits``, may not) certify.

    Without an issuer (``SELF``) the rule is about the CA after which the file is named.
    """

    issuer: DistinguishedName | None
    permits: bool
    subject: SubjectPattern


class PolicyKind(StrEnum):
    """The two formats; their values are the files' suffixes."""

    NAMESPACES = "namespaces"
    SIGNING_POLICY = "signing_policy"


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """One policy file. ``owners`` are subjects whose certificates lie under the same stem.

    ``fault`` says why the file cannot be believed to be read rightly; it has no rules then.
    """

    name: str
    kind: PolicyKind
    rules: tuple[PolicyRule, ...] = ()
    fault: str = ""
    owners: frozenset[DistinguishedName] = frozenset()

    def is_named_after(self, issuer: x509.Certificate) -> bool:
        """Whether the file is the issuer's by its name: its hash, or its certificate's stem."""
        stem = self.name.partition(".")[0].lower()
        name = DistinguishedName.from_x509(issuer.subject)
        return name in self.owners or stem in subject_hashes(issuer)

    def rules_for(self, issuer: x509.Certificate) -> tuple[PolicyRule, ...]:
        """The rules about this issuer."""
        name = DistinguishedName.from_x509(issuer.subject)
        own = self.is_named_after(issuer)
        return tuple(
            rule for rule in self.rules if (own if rule.issuer is None else rule.issuer == name)
        )


def subject_hashes(certificate: x509.Certificate) -> frozenset[str]:
    """The stems under which OpenSSL looks for a CA: of OpenSSL 1.0 and later, and of before."""
    # crypto/x509/x509_cmp.c, X509_NAME_hash_old: the first four bytes of the MD5 of the name's DER.
    digest = hashlib.md5(certificate.subject.public_bytes(), usedforsecurity=False).digest()
    old = int.from_bytes(digest[:4], "little")
    new = crypto.X509.from_cryptography(certificate).subject_name_hash()
    return frozenset({f"{old:08x}", f"{new:08x}"})


def check_namespaces(
    path: Sequence[x509.Certificate], files: Sequence[PolicyFile], *, use: PolicyUse
) -> list[Reason]:
    """What the policies say against the certificates of ``path`` (leaf first, anchor last)."""
    reasons: list[Reason] = []
    for member, issuer in pairwise(path):
        reasons += _check_one(member, issuer, files, use)
    return reasons


def _check_one(
    member: x509.Certificate,
    issuer: x509.Certificate,
    files: Sequence[PolicyFile],
    use: PolicyUse,
) -> list[Reason]:
    subject, authority = slash_form(member.subject), slash_form(issuer.subject)
    broken = [file for file in files if file.fault and _may_bind(file, issuer)]
    if broken:
        what = f"which may say what {authority} may certify, cannot be read"
        return [
            Reason(ReasonCode.POLICY_INVALID, f"{file.name}, {what}: {file.fault}")
            for file in broken
        ]
    binding = [file for file in files if file.is_named_after(issuer) or file.rules_for(issuer)]
    if not binding:
        if use == "if-present":
            return []
        text = f"no namespaces or signing_policy file says what {authority} may certify"
        return [Reason(ReasonCode.POLICY_MISSING, text)]
    preferred = [file for file in binding if file.kind is PolicyKind.NAMESPACES] or binding
    flat = DistinguishedName.from_x509(member.subject).flat()
    rules = [rule for file in preferred for rule in file.rules_for(issuer)]
    names = ", ".join(file.name for file in preferred)
    for rule in rules:
        # A name that is spelled a little otherwise is the same name; to permit, it must be exact.
        if not rule.permits and (rule.subject.matches(flat) or rule.subject.matches_loosely(flat)):
            text = f"{names}: {authority} must not certify {subject} (DENY {rule.subject.text})"
            return [Reason(ReasonCode.NAMESPACE_NOT_PERMITTED, text)]
    if any(rule.permits and rule.subject.matches(flat) for rule in rules):
        return []
    text = f"{names}: {authority} may not certify {subject}"
    return [Reason(ReasonCode.NAMESPACE_NOT_PERMITTED, text)]


def _may_bind(file: PolicyFile, issuer: x509.Certificate) -> bool:
    """Whether a file that could not be read may be about this issuer.

    One that is named after a hash or a certificate is about that CA; any other may be about any.
    """
    stem = file.name.partition(".")[0]
    nameless = not file.owners and not _HASH_STEM.fullmatch(stem)
    return nameless or file.is_named_after(issuer)
