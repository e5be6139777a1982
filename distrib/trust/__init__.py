"""Trust: which signed documents may be believed.

Pure: bytes, trust material and ``now`` go in, a verdict comes out.
No network and no clock here, and no files but in ``directory`` (reading) and ``testpki`` (demos and
tests).

The rules that a list must pass. All that fail are reported, each by its code
(``reasons.ReasonCode``):

The message (``signature``)
 1. It is at most 12 MiB, and its content at most 8 MiB: ``too-large``.
 2. It is ``multipart/signed`` of exactly two parts, the second a detached PKCS#7 signature in
    base64, the content not repeated inside the signature and not encoded: ``message-malformed``.
 3. Exactly one signer: ``signer-count``.
 4. Digest not weaker than SHA-256, in the signature and in every certificate of the path:
    ``digest-weak``; keys not weaker than RSA 2048 or a 256-bit curve: ``key-weak``.
 5. The signed attributes name the content's type and digest, the content has that digest, the
    signer's key made the signature: ``signature-invalid``.

The signer (``chain``)
 6. A path to an anchor of the trust directory, by OpenSSL's path validation, on which each issuer
    is spelled as its CA is and none has the name of another known CA: ``chain-untrusted``.
 7. Every certificate of the path is in date: ``certificate-expired``,
    ``certificate-not-yet-valid``.
 8. The signer's certificate may sign (keyUsage, where it has one): ``key-usage``.
 9. Every issuer of the path has a CRL (``crl-missing``), signed by that issuer (``crl-invalid``),
    in date (``crl-expired``, ``crl-not-yet-valid``), and no certificate of the path is on one:
    ``certificate-revoked``.
10. Every subject of the path is one that its issuer may certify, by the issuer's ``.namespaces`` or
    ``.signing_policy`` (``namespace-not-permitted``); such a file can be read (``policy-invalid``)
    and, where the site says so, is there: ``policy-missing``.

The document (``imagelist``, ``sitelist``)
11. It is JSON of bounded depth without repeated keys: ``message-malformed``; every field that trust
    stands on is there (``field-missing``) and well formed (``field-invalid``).
12. Identifiers are UUIDs (``uuid-invalid``), each once in the list (``uuid-duplicate``); in a site
    list once per version.

The document against what is expected of it (``verify``)
13. created <= now <= expires: ``list-not-yet-valid`` (or the clock here is behind),
    ``list-expired``.
14. The signer is the endorser that the list states, subject and issuer: ``signer-not-endorser``.
15. That endorser is authorised for this subscription: ``endorser-not-authorised``.
16. The identifier is the subscription's: ``identifier-mismatch``.
17. The version never goes down (``version-down``), and the same version is the same bytes
    (``version-same-other-bytes``).
18. No image UUID that another subscription owns: ``uuid-foreign``.
19. A site list is signed by a certificate with the role ``catalogue``: ``role-missing``.

An entry of StratusLab's Marketplace (``marketplace``, ``xmldsig``, ``entry``) is held against rules
1, 3 to 5, 6 to 10, 13 to 17 in the same way, its signature being XML-DSig, and besides:

20. Its signature is not by SHA-1, unless the site allows that endorser to: ``signature-sha1``.
21. It names a SHA-512 of the image: ``digest-weak``.
22. Its endorser has not withdrawn it: ``deprecated``.

A site list that passes all of these but is older than the site allows is ``list-stale``: that stops
new leases only (``sitelist.is_stale``).
"""
