"""Why a signed document is refused: stable codes, and a text for people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from distrib.errors import TrustRefused


class ReasonCode(StrEnum):
    """One code a rule; the rules are listed in ``distrib.trust``. The values are an interface."""

    TOO_LARGE = "too-large"
    MESSAGE_MALFORMED = "message-malformed"
    SIGNER_COUNT = "signer-count"
    DIGEST_WEAK = "digest-weak"
    KEY_WEAK = "key-weak"
    SIGNATURE_INVALID = "signature-invalid"
    SIGNATURE_SHA1 = "signature-sha1"

    CHAIN_UNTRUSTED = "chain-untrusted"
    CERTIFICATE_EXPIRED = "certificate-expired"
    CERTIFICATE_NOT_YET_VALID = "certificate-not-yet-valid"
    CERTIFICATE_REVOKED = "certificate-revoked"
    KEY_USAGE = "key-usage"
    CRL_MISSING = "crl-missing"
    CRL_EXPIRED = "crl-expired"
    CRL_NOT_YET_VALID = "crl-not-yet-valid"
    CRL_INVALID = "crl-invalid"
    NAMESPACE_NOT_PERMITTED = "namespace-not-permitted"
    POLICY_MISSING = "policy-missing"
    POLICY_INVALID = "policy-invalid"

    FIELD_MISSING = "field-missing"
    FIELD_INVALID = "field-invalid"
    UUID_INVALID = "uuid-invalid"
    UUID_DUPLICATE = "uuid-duplicate"
    UUID_FOREIGN = "uuid-foreign"

    LIST_EXPIRED = "list-expired"
    LIST_NOT_YET_VALID = "list-not-yet-valid"
    LIST_STALE = "list-stale"
    SIGNER_NOT_ENDORSER = "signer-not-endorser"
    ENDORSER_NOT_AUTHORISED = "endorser-not-authorised"
    IDENTIFIER_MISMATCH = "identifier-mismatch"
    VERSION_DOWN = "version-down"
    VERSION_SAME_OTHER_BYTES = "version-same-other-bytes"
    ROLE_MISSING = "role-missing"
    DEPRECATED = "deprecated"

    ENVELOPE_KEY_UNKNOWN = "envelope-key-unknown"
    ENVELOPE_SIGNATURE = "envelope-signature"
    ENVELOPE_KIND = "envelope-kind"
    MESSAGE_INVALID = "message-invalid"


#: What only the passing of time does to a document that was once accepted.
TIME_CODES = frozenset(
    {
        ReasonCode.CERTIFICATE_EXPIRED,
        ReasonCode.CERTIFICATE_NOT_YET_VALID,
        ReasonCode.CRL_EXPIRED,
        ReasonCode.CRL_NOT_YET_VALID,
        ReasonCode.LIST_EXPIRED,
        ReasonCode.LIST_NOT_YET_VALID,
        ReasonCode.LIST_STALE,
    }
)


@dataclass(frozen=True, slots=True)
class Reason:
    """One rule that a document breaks, and how."""

    code: ReasonCode
    message: str

    def as_dict(self) -> dict[str, str]:
        """The reason as the API and ``--json`` carry it."""
        return {"code": self.code.value, "message": self.message}

    def __str__(self) -> str:
        return f"{self.code.value}: {self.message}"


def refusal(
    what: str, reasons: Iterable[Reason], *, hint: str = "", **ids: str | int
) -> TrustRefused:
    """A ``TrustRefused`` that says ``what`` was refused and carries every reason."""
    found = tuple(reasons)
    return TrustRefused(
        f"{what} refused: " + "; ".join(str(reason) for reason in found),
        reasons=tuple(reason.as_dict() for reason in found),
        hint=hint,
        **ids,
    )
