"""Why a signed document is refused: stable codes, and a text for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

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


_SIGN_AGAIN = "sign again: nothing weaker than SHA-256, in the certificates too"
_ENDORSER = "ask the endorser to correct it"
_DATES = "ask the endorser for a newer one; is the clock here right?"
_CRL = "fetch the CRLs again (fetch-crl); they lie as HASH.r0 in the trust directory"
_POLICY = "see HASH.namespaces or HASH.signing_policy in the trust directory"
_ORDERS = "who else may write to the broker? else a bug"

#: What to do about it, for whoever has to; one line a code.
REMEDIES: Final[Mapping[ReasonCode, str]] = {
    ReasonCode.TOO_LARGE: "is this the right file? nothing of it is read",
    ReasonCode.MESSAGE_MALFORMED: "give it as it was signed: no web page, no bare JSON",
    ReasonCode.SIGNER_COUNT: "one endorser signs it, once",
    ReasonCode.DIGEST_WEAK: _SIGN_AGAIN,
    ReasonCode.KEY_WEAK: "the endorser needs a certificate with a longer key",
    ReasonCode.SIGNATURE_INVALID: "fetch it again: it was changed after it was signed",
    ReasonCode.SIGNATURE_SHA1: "sha1_endorsers in client.toml, or --allow-sha1-endorser, allows it",
    ReasonCode.CHAIN_UNTRUSTED: "put the CA into the trust directory, if you trust it",
    ReasonCode.CERTIFICATE_EXPIRED: "renew the certificate, then sign again",
    ReasonCode.CERTIFICATE_NOT_YET_VALID: "is the clock here right?",
    ReasonCode.CERTIFICATE_REVOKED: "believe nothing of it; ask the endorser what happened",
    ReasonCode.KEY_USAGE: "the endorser needs a certificate that may sign (digitalSignature)",
    ReasonCode.CRL_MISSING: _CRL,
    ReasonCode.CRL_EXPIRED: _CRL,
    ReasonCode.CRL_NOT_YET_VALID: "is the clock here right?",
    ReasonCode.CRL_INVALID: _CRL,
    ReasonCode.NAMESPACE_NOT_PERMITTED: _POLICY,
    ReasonCode.POLICY_MISSING: _POLICY,
    ReasonCode.POLICY_INVALID: _POLICY,
    ReasonCode.FIELD_MISSING: _ENDORSER,
    ReasonCode.FIELD_INVALID: _ENDORSER,
    ReasonCode.UUID_INVALID: _ENDORSER,
    ReasonCode.UUID_DUPLICATE: _ENDORSER,
    ReasonCode.UUID_FOREIGN: "distrib image show names the list that has it",
    ReasonCode.LIST_EXPIRED: _DATES,
    ReasonCode.LIST_NOT_YET_VALID: "is the clock here right?",
    ReasonCode.LIST_STALE: "is the site's controller running? is the clock here right?",
    ReasonCode.SIGNER_NOT_ENDORSER: "who signs must be whom hv:dn and hv:ca name: ask the endorser",
    ReasonCode.ENDORSER_NOT_AUTHORISED: "distrib endorser add, if this signer is to be believed",
    ReasonCode.IDENTIFIER_MISMATCH: "is the URL right? subscribe to another list apart",
    ReasonCode.VERSION_DOWN: "an older one is offered than is known here: ask the endorser",
    ReasonCode.VERSION_SAME_OTHER_BYTES: "other contents need another version: ask the endorser",
    ReasonCode.ROLE_MISSING: "a site list is signed with the site's catalogue certificate",
    ReasonCode.DEPRECATED: "take a newer entry of the endorser",
    ReasonCode.ENVELOPE_KEY_UNKNOWN: _ORDERS,
    ReasonCode.ENVELOPE_SIGNATURE: _ORDERS,
    ReasonCode.ENVELOPE_KIND: _ORDERS,
    ReasonCode.MESSAGE_INVALID: _ORDERS,
}


@dataclass(frozen=True, slots=True)
class Reason:
    """One rule that a document breaks, and how."""

    code: ReasonCode
    message: str

    @property
    def hint(self) -> str:
        """What to do about it."""
        return REMEDIES[self.code]

    def as_dict(self) -> dict[str, str]:
        """The reason as the API and ``--json`` carry it."""
        return {"code": self.code.value, "message": self.message, "hint": self.hint}

    def __str__(self) -> str:
        return f"{self.code.value}: {self.message}"


def refusal(
    what: str, reasons: Iterable[Reason], *, hint: str = "", **ids: str | int
) -> TrustRefused:
    """A ``TrustRefused`` that says ``what`` was refused and carries every reason.

    Where there is one reason only, and no other ``hint``, its own is the error's.
    """
    found = tuple(reasons)
    return TrustRefused(
        f"{what} refused: " + "; ".join(str(reason) for reason in found),
        reasons=tuple(reason.as_dict() for reason in found),
        hint=hint or (found[0].hint if len(found) == 1 else ""),
        **ids,
    )
