"""XML signatures of the one shape that the Marketplace uses: enveloped, over the whole document.

``signxml`` verifies; here is settled beforehand what it may meet (one signature, one reference to
the whole document, known algorithms), and afterwards only what it says was signed is read.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from lxml import etree
from signxml.algorithms import CanonicalizationMethod, DigestAlgorithm, SignatureMethod
from signxml.exceptions import InvalidDigest, InvalidSignature, SignXMLException
from signxml.verifier import SignatureConfiguration, VerifyResult, XMLVerifier

from distrib.trust.cms import PARSE_FAULTS, read_certificate
from distrib.trust.reasons import Reason, ReasonCode
from distrib.trust.xmltext import Element

DSIG = "{http://www.w3.org/2000/09/xmldsig#}"
_XML_BASE = "{http://www.w3.org/XML/1998/namespace}base"
_ENVELOPED = "http://www.w3.org/2000/09/xmldsig#enveloped-signature"
_C14N_1_0 = "http://www.w3.org/TR/2001/REC-xml-c14n-20010315"
_CANONICAL = frozenset({_C14N_1_0, f"{_C14N_1_0}#WithComments"})
_METHODS = {
    method.value: method
    for method in SignatureMethod
    if method.name in {
        f"{kind}_{digest}"
        for kind in ("RSA", "ECDSA")
        for digest in ("SHA1", "SHA256", "SHA384", "SHA512")
    }
}  # fmt: skip
_DIGESTS = {
    digest.value: digest
    for digest in DigestAlgorithm
    if digest.name in {"SHA1", "SHA256", "SHA384", "SHA512"}
}
_MAX_CERTIFICATES = 8
_FAULTS = (
    SignXMLException,
    UnsupportedAlgorithm,
    etree.LxmlError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    AssertionError,
)


@dataclass(frozen=True, slots=True)
class SignedXml:
    """What is known of a document's signature.

    ``document``: the canonical XML that was signed, without the signature; None unless the
    signature holds. ``sha1``: whether SHA-1 has a part in it. ``digest_algorithm``: as ``sha256``,
    empty where unknown. ``reasons``: what is broken, but for the use of SHA-1.
    """

    document: bytes | None
    signer: x509.Certificate | None
    certificates: tuple[x509.Certificate, ...]
    digest_algorithm: str
    sha1: bool
    reasons: tuple[Reason, ...]


class _Verifier(XMLVerifier):
    """signxml, with SignedInfo canonicalised as Canonical XML 1.0 says.

    lxml writes superfluous ``xmlns=""`` when it canonicalises an element inside a tree whose
    default namespace is declared further up, as every entry of the Marketplace has it. As a
    document of its own, with what is in scope declared on it, the element comes out right.
    """

    def _c14n(self, nodes: Any, *args: Any, **kwargs: Any) -> Any:
        alone = _copy(nodes)
        return super()._c14n(alone, *args, **kwargs)


def open_signed(root: Element) -> SignedXml:
    """Check the one signature of a document. Never raises: what is wrong is in ``reasons``."""
    signatures = list(root.iter(f"{DSIG}Signature"))
    if len(signatures) != 1:
        text = f"{len(signatures)} signatures, exactly one is accepted"
        return _unread(ReasonCode.SIGNER_COUNT, text)
    signature = signatures[0]
    if signature.getparent() is not root:
        return _unread(ReasonCode.SIGNATURE_INVALID, "the signature is not at the document's top")
    try:
        method, digest = _algorithms(signature)
        certificates = _certificates(signature)
    except _Refused as refused:
        return _unread(refused.code, str(refused))
    sha1 = "SHA1" in {method.name.rpartition("_")[2], digest.name}
    document, fault = _verify(root, certificates[0], method, digest)
    reasons = (Reason(ReasonCode.SIGNATURE_INVALID, fault),) if fault else ()
    name = method.name.rpartition("_")[2].lower()
    return SignedXml(document, certificates[0], certificates, name, sha1, reasons)


class _Refused(ValueError):
    def __init__(self, text: str, code: ReasonCode = ReasonCode.SIGNATURE_INVALID) -> None:
        super().__init__(text)
        self.code = code


def _unread(code: ReasonCode, text: str) -> SignedXml:
    return SignedXml(None, None, (), "", sha1=False, reasons=(Reason(code, text),))


def _algorithms(signature: Element) -> tuple[SignatureMethod, DigestAlgorithm]:
    """The algorithms of a signature over the whole document; ``_Refused`` for any other."""
    info = _only(signature, "SignedInfo")
    if _algorithm(_only(info, "CanonicalizationMethod")) not in _CANONICAL:
        raise _Refused("the signature is not over Canonical XML 1.0")
    reference = _only(info, "Reference")
    if reference.get("URI") != "":
        raise _Refused("the signature is not over the whole document")
    transforms = [
        _algorithm(each) for each in _only(reference, "Transforms").iterchildren(f"{DSIG}Transform")
    ]
    if transforms[:1] != [_ENVELOPED] or not _CANONICAL.issuperset(transforms[1:2]):
        raise _Refused("the signature is over something else than the document without it")
    if len(transforms) > 2:
        raise _Refused("the signature has more transforms than are read here")
    method = _known(_METHODS, _only(info, "SignatureMethod"))
    return method, _known(_DIGESTS, _only(reference, "DigestMethod"))


def _only(parent: Element, name: str) -> Element:
    found = list(parent.iterchildren(f"{DSIG}{name}"))
    if len(found) != 1:
        raise _Refused(f"the signature has not exactly one {name}")
    return found[0]


def _algorithm(element: Element) -> str:
    return str(element.get("Algorithm", ""))


def _known(known: dict[str, Any], element: Element) -> Any:
    uri = _algorithm(element)
    if uri in known:
        return known[uri]
    if "md5" in uri.lower():
        raise _Refused(f"signed with {uri[:100]}", ReasonCode.DIGEST_WEAK)
    raise _Refused(f"{uri[:100]!r} is not an algorithm that entries are signed with")


def _certificates(signature: Element) -> tuple[x509.Certificate, ...]:
    """The signer's certificate and what came with it."""
    holders = list(signature.iterfind(f"{DSIG}KeyInfo/{DSIG}X509Data/{DSIG}X509Certificate"))
    if not holders:
        raise _Refused("the signature does not bring the signer's certificate")
    if len(holders) > _MAX_CERTIFICATES:
        raise _Refused(f"more than {_MAX_CERTIFICATES} certificates in the signature")
    try:
        ders = [base64.b64decode("".join((each.text or "").split()), validate=True)
                for each in holders]  # fmt: skip
        return tuple(read_certificate(der) for der in ders)
    except (binascii.Error, *PARSE_FAULTS) as error:
        raise _Refused(f"the signer's certificate cannot be read: {error}"[:200]) from None


def _verify(
    root: Element, signer: x509.Certificate, method: SignatureMethod, digest: DigestAlgorithm
) -> tuple[bytes | None, str]:
    """What was signed; or None and why the signature does not hold."""
    configuration = SignatureConfiguration(
        location="./",
        signature_methods=frozenset({method}),
        digest_algorithms=frozenset({digest}),
        # What Reference digests without a canonicalisation of its own (XML-DSig, 4.3.3.2).
        default_reference_c14n_method=CanonicalizationMethod.CANONICAL_XML_1_0,
        # Dates, path and revocation are for ``chain``, which tells every reason.
        verification_time=signer.not_valid_before_utc,
    )
    copy = _copy(root)
    # Canonical XML 1.0 (2.4) gives the apex of a part its ancestors' xml:* attributes.
    base = root.get(_XML_BASE)
    info = copy.find(f"{DSIG}Signature/{DSIG}SignedInfo")
    if base is not None and info.get(_XML_BASE) is None:
        info.set(_XML_BASE, base)
    try:
        found = _Verifier().verify(
            copy, x509_cert=signer, expect_config=configuration, validate_schema=False
        )
    except InvalidDigest:
        return None, "the content is not what was signed: its digest differs"
    except InvalidSignature:
        return None, "the signature was not made by the signer's key over these bytes"
    except _FAULTS as error:
        return None, f"the signature cannot be checked: {type(error).__name__}: {error}"[:200]
    if not isinstance(found, VerifyResult):
        return None, "the signature is over more than one thing"
    return found.signed_data, ""


def _copy(element: Element) -> Element:
    """The element as a document of its own, with the namespaces in scope declared on it."""
    text = etree.tostring(element, with_tail=False)
    return etree.fromstring(text, parser=etree.XMLParser(resolve_entities=False, no_network=True))
