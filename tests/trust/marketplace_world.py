"""Marketplace entries that the tests sign themselves."""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from lxml import etree

from distrib.trust.entry import identifier_of
from distrib.trust.fields import format_time
from distrib.trust.testpki import Authority

from .conftest import make_certificate

IMAGE = b"an image\n"
EMAIL = "jane@experiment.example.org"
SUBJECT = "CN=Jane Endorser,O=Experiment"
ISSUER = "CN=Experiment CA,O=Experiment"
C14N = "http://www.w3.org/TR/2001/REC-xml-c14n-20010315"


def entry_xml(
    created: datetime,
    *,
    expires: datetime | None = None,
    subject: str = SUBJECT,
    issuer: str = ISSUER,
    email: str = EMAIL,
    image: bytes = IMAGE,
    more: str = "",
) -> str:
    """An unsigned entry about ``image``."""
    sha1 = hashlib.sha1(image, usedforsecurity=False).hexdigest()
    identifier = identifier_of(sha1)
    valid = f"<dcterms:valid>{format_time(expires)}</dcterms:valid>" if expires else ""
    return f"""<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
 xmlns:dcterms="http://purl.org/dc/terms/" xmlns:slreq="http://mp.stratuslab.eu/slreq#"
 xmlns:slterms="http://mp.stratuslab.eu/slterms#" xml:base="http://mp.stratuslab.eu/">
 <rdf:Description rdf:about="#{identifier}">
  <dcterms:identifier>{identifier}</dcterms:identifier>
  <slreq:bytes>{len(image)}</slreq:bytes>
  <slreq:checksum rdf:parseType="Resource">
   <slreq:algorithm>SHA-1</slreq:algorithm><slreq:value>{sha1}</slreq:value>
  </slreq:checksum>
  <slreq:checksum rdf:parseType="Resource">
   <slreq:algorithm>SHA-512</slreq:algorithm>
   <slreq:value>{hashlib.sha512(image).hexdigest()}</slreq:value>
  </slreq:checksum>
  <slreq:endorsement rdf:parseType="Resource">
   <dcterms:created>{format_time(created)}</dcterms:created>
   <slreq:endorser rdf:parseType="Resource">
    <slreq:email>{email}</slreq:email>
    <slreq:subject>{subject}</slreq:subject>
    <slreq:issuer>{issuer}</slreq:issuer>
   </slreq:endorser>
  </slreq:endorsement>
  <dcterms:type>machine</dcterms:type>{valid}
  <dcterms:title>worker</dcterms:title>
  <slterms:location>https://images.example.org/worker.raw</slterms:location>{more}
 </rdf:Description>
</rdf:RDF>
"""


def sign_entry(
    text: str,
    certificate: x509.Certificate,
    key: rsa.RSAPrivateKey,
    *,
    digest: str = "sha256",
    extra: tuple[x509.Certificate, ...] = (),
) -> bytes:
    """The entry with an enveloped signature as the Marketplace's client made it.

    The canonical form of SignedInfo is written out here by hand, after Canonical XML 1.0: with the
    namespaces and the xml:base that are in scope, which signxml's own signer leaves out.
    """
    root = etree.fromstring(text.encode())
    digested = hashlib.new(digest, etree.tostring(root, method="c14n", with_comments=False))
    base = "http://www.w3.org/2000/09/xmldsig#"
    more = "http://www.w3.org/2001/04/xmldsig-more#"
    method = f"{base if digest == 'sha1' else more}rsa-{digest}"
    digest_uri = f"{base}sha1" if digest == "sha1" else f"http://www.w3.org/2001/04/xmlenc#{digest}"
    inner = (
        f'<CanonicalizationMethod Algorithm="{C14N}#WithComments"></CanonicalizationMethod>'
        f'<SignatureMethod Algorithm="{method}"></SignatureMethod>'
        f'<Reference URI=""><Transforms><Transform Algorithm="{base}enveloped-signature">'
        f'</Transform></Transforms><DigestMethod Algorithm="{digest_uri}"></DigestMethod>'
        f"<DigestValue>{base64.b64encode(digested.digest()).decode()}</DigestValue></Reference>"
    )
    scope = "".join(f' xmlns:{prefix}="{root.nsmap[prefix]}"' for prefix in sorted(root.nsmap))
    xml_base = f' xml:base="{root.base}"'
    canonical = f'<SignedInfo xmlns="{base}"{scope}{xml_base}>{inner}</SignedInfo>'
    algorithm = getattr(hashes, digest.upper())()
    value = key.sign(canonical.encode(), padding.PKCS1v15(), algorithm)
    certificates = "".join(
        f"<X509Certificate>{base64.b64encode(each.public_bytes(Encoding.DER)).decode()}"
        "</X509Certificate>"
        for each in (certificate, *extra)
    )
    signature = (
        f'<Signature xmlns="{base}"><SignedInfo>{inner}</SignedInfo>'
        f"<SignatureValue>{base64.b64encode(value).decode()}</SignatureValue>"
        f"<KeyInfo><X509Data>{certificates}</X509Data></KeyInfo></Signature>"
    )
    return text.replace("</rdf:RDF>", f"{signature}</rdf:RDF>").encode()


def certificate_with_email(
    key: rsa.RSAPrivateKey, issuer: Authority, email: str = EMAIL
) -> x509.Certificate:
    """``CN=Jane Mail`` with an address in its SubjectAltName."""
    names = x509.SubjectAlternativeName([x509.RFC822Name(email)])
    return make_certificate("Jane Mail", key, issuer, extensions=(names,))
