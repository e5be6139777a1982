"""Trust: which signed documents may be believed.

Pure: bytes, trust material and ``now`` go in, a verdict comes out.
No network and no clock here, and no files but in ``directory`` (reading) and ``testpki`` (demos and
tests).

The rules that a list must pass. All that fail are reported, each by its code
(``reasons.ReasonCode``):

The message (``signature``)
 1. It is at most 12 MiB, and its content at most 8 MiB: ``too-large``.
 2. It is ``multipart/signed`` of exactly two parts, the second a detached PKCS#7 signature in
    base64, the content not repeated inside the signature: ``message-malformed``.
 3. Exactly one signer: ``signer-count``.
 4. Digest not weaker than SHA-256, in the signature and in every certificate of the path:
    ``digest-weak``; keys not weaker than RSA 2048 or a 256-bit curve: ``key-weak``.
 5. The signed attributes name the content's type and digest, the content has that digest, the
    signer's key made the signature: ``signature-invalid``.

The signer (``chain``)
 6. A path to an anchor of the trust directory, by OpenSSL's path validation: ``chain-untrusted``.
 7. Every certificate of the path is in date: ``certificate-expired``,
    ``certificate-not-yet-valid``.
 8. The signer's certificate may sign (keyUsage, where it has one): ``key-usage``.
 9. Every issuer of the path has a CRL (``crl-missing``), signed by that issuer (``crl-invalid``),
    in date (``crl-expired``, ``crl-not-yet-valid``), and no certificate of the path is on one:
    ``certificate-revoked``.

The document (``imagelist``, ``sitelist``)
10. It is JSON of bounded depth without repeated keys: ``message-malformed``; every field that trust
    stands on is there (``field-missing``) and well formed (``field-invalid``).
11. Identifiers are UUIDs (``uuid-invalid``), each once in the list (``uuid-duplicate``); in a site
    list once per version.

The document against what is expected of it (``verify``)
12. created <= now <= expires: ``list-not-yet-valid`` (or the clock here is behind),
    ``list-expired``.
13. The signer is the endorser that the list states, subject and issuer: ``signer-not-endorser``.
14. That endorser is authorised for this subscription: ``endorser-not-authorised``.
15. The identifier is the subscription's: ``identifier-mismatch``.
16. The version never goes down (``version-down``), and the same version is the same bytes
    (``version-same-other-bytes``).
17. No image UUID that another subscription owns: ``uuid-foreign``.
18. A site list is signed by a certificate with the role ``catalogue``: ``role-missing``.

A site list that passes all of these but is older than the site allows is ``list-stale``: that stops
new leases only (``sitelist.is_stale``).
"""
