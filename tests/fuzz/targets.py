"""What is fuzzed: every reader of bytes from strangers, with what it may answer and no more.

A target takes a mutated input and returns; it raises AssertionError where something is accepted
that is not what its owner signed. Whatever else comes out of it is a crash.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from distrib.errors import ConfigInvalid
from distrib.swarm.torrent import TorrentMismatch, check_info, parse_info
from distrib.trust import mime
from distrib.trust.chain import check_chain
from distrib.trust.directory import read_certificates, read_crls
from distrib.trust.endorse import stamp_list
from distrib.trust.entry import parse_entry
from distrib.trust.envelope import EnvelopeRefused, key_id, open_envelope, seal
from distrib.trust.imagelist import (
    ImageListInvalid,
    parse_image_list,
    render_image_list,
    version_key,
)
from distrib.trust.marketplace import EntryExpectation, verify_entry
from distrib.trust.names import DistinguishedName, same_name
from distrib.trust.policyfiles import parse_policy
from distrib.trust.signature import sign_smime
from distrib.trust.sitelist import parse_site_list, render_site_list, verify_site_list
from distrib.trust.verify import Expectation, verify
from distrib.trust.xmltext import XmlRefused, canonical, load_xml
from tests.trust.conftest import CONTROLLER_KEY, NOW, World, make_crl
from tests.trust.marketplace_world import entry_xml, sign_entry

DATA = Path(__file__).parents[1] / "data"
ANYBODY = Expectation()
ANY_ENTRY = EntryExpectation(sha1_endorsers=frozenset({"/O=Experiment/CN=Jane Endorser"}))


@dataclass(frozen=True)
class Target:
    """A reader: ``seeds`` that it knows, and ``run`` over what became of one."""

    name: str
    seeds: tuple[bytes, ...]
    run: Callable[[bytes], None]


def targets(world: World, scratch: Path) -> list[Target]:
    """All of them; files that they need are in ``scratch``."""
    return [
        *_lists(world),
        *_entries(world),
        *_trust_material(world, scratch),
        *_orders(world),
        *_texts(world),
    ]


def _lists(world: World) -> Iterator[Target]:
    signed = world.signed()
    more = replace(
        world.image_list(), images=world.image_list().images * 1, extra={"ad:vo": "vo", "n": [1.5]}
    )
    own = (signed, world.signed(more), sign_smime(
        world.content(), world.endorser.certificate, world.endorser.key,
        (world.experiment.certificate,), digest="sha256",
    ))  # fmt: skip
    field = tuple(path.read_bytes() for path in sorted((DATA / "imagelists").glob("*.smime")))
    genuine = {mime.crlf(world.content()), mime.crlf(render_image_list(more))}

    def message(data: bytes) -> None:
        verdict = verify(data, trust=world.trust, expectation=ANYBODY, now=NOW)
        assert not verdict.accepted or verdict.document in genuine

    yield Target("list", (*own, *field), message)

    content, ders = mime.split_signed(signed).content, [
        mime.split_signed(each).signature for each in (*own, *field)
    ]  # fmt: skip

    def signature(data: bytes) -> None:
        message(mime.join_signed(content, data, boundary="part", micalg="sha-512"))

    yield Target("signature", tuple(ders), signature)

    def document(data: bytes) -> None:
        with contextlib.suppress(ImageListInvalid):
            parsed = parse_image_list(data)
            assert parse_image_list(render_image_list(parsed)) == parsed
            version_key(parsed.version)
        with contextlib.suppress(ImageListInvalid):
            stamp_list(data, world.endorser.certificate, now=NOW, bump=True)

    documents = [mime.document_of(mime.split_signed(each).content) for each in (*own, *field)]
    yield Target("document", tuple(documents), document)

    node, key = world.node.certificate, world.node.key

    def signed_document(data: bytes) -> None:
        """What a real signer signed, whatever it is: every rule is reached."""
        crooked = sign_smime(data, node, key, digest="sha256")
        verdict = verify(crooked, trust=world.site_trust, expectation=ANYBODY, now=NOW)
        assert verdict.accepted == (not verdict.reasons)
        assert verify_site_list(crooked, trust=world.site_trust, now=NOW).reasons

    own_documents = (render_image_list(world.image_list(world.node)), documents[1])
    yield Target("signed-document", own_documents, signed_document)

    site = world.signed_site_list()
    both = replace(world.site_list(), images=(world.site_image("1.0.0"), world.site_image("2.0.0")))
    genuine_lists = (world.site_list(), both)

    def site_message(data: bytes) -> None:
        verdict = verify_site_list(data, trust=world.site_trust, now=NOW)
        assert not verdict.accepted or verdict.site_list in genuine_lists

    yield Target("site-list", (site, world.signed_site_list(both)), site_message)

    def site_document(data: bytes) -> None:
        with contextlib.suppress(ImageListInvalid):
            parse_site_list(data)

    yield Target(
        "site-document", tuple(render_site_list(each) for each in genuine_lists), site_document
    )


def _entries(world: World) -> Iterator[Target]:
    key = world.endorser.key
    assert isinstance(key, rsa.RSAPrivateKey)
    text = entry_xml(NOW - timedelta(hours=1), expires=NOW + timedelta(days=1))
    own = tuple(
        sign_entry(text, world.endorser.certificate, key, digest=digest)
        for digest in ("sha256", "sha1")
    )
    field = tuple(path.read_bytes() for path in sorted((DATA / "marketplace").glob("*.xml")))
    genuine = verify_entry(own[0], trust=world.trust, expectation=ANY_ENTRY, now=NOW).require()

    def entry(data: bytes) -> None:
        verdict = verify_entry(data, trust=world.trust, expectation=ANY_ENTRY, now=NOW)
        assert not verdict.accepted or verdict.entry == genuine

    yield Target("entry", (*own, *own, *field), entry)

    def fields(data: bytes) -> None:
        with contextlib.suppress(XmlRefused):
            parse_entry(load_xml(canonical(load_xml(data))))

    yield Target("entry-fields", (text.encode(), *field), fields)


def _trust_material(world: World, scratch: Path) -> Iterator[Target]:
    root, endorser = world.experiment, world.endorser.certificate
    assert isinstance(root.key, rsa.RSAPrivateKey)
    crls = [make_crl(root.certificate.subject, root.key), make_crl(root.certificate.subject, root.key, endorser)]  # noqa: E501  # fmt: skip
    bare = replace(world.trust, crls=())
    genuine = {crls[0].fingerprint(endorser.signature_hash_algorithm)}  # type: ignore[arg-type]
    file = scratch / "fuzzed.r0"

    def crl(data: bytes) -> None:
        """A CRL that was touched neither crashes nor clears anybody."""
        file.write_bytes(data)
        try:
            read = read_crls(file)
        except ConfigInvalid:
            return
        reasons = check_chain(endorser, trust=bare.with_crls(*read), now=NOW)
        if not reasons:
            prints = {each.fingerprint(endorser.signature_hash_algorithm) for each in read}  # type: ignore[arg-type]
            assert prints & genuine

    forms = [each.public_bytes(form) for each in crls for form in (Encoding.DER, Encoding.PEM)]
    yield Target("crl", tuple(forms), crl)

    def certificate(data: bytes) -> None:
        """A certificate that was touched is not believed, as a signer's or as a CA's."""
        file.write_bytes(data)
        try:
            read = read_certificates(file)
        except ConfigInvalid:
            return
        for each in read:
            known = each in {endorser, root.certificate}
            assert known or check_chain(each, trust=world.trust, now=NOW)
            check_chain(endorser, untrusted=read, trust=world.trust, now=NOW)

    yield Target(
        "certificate",
        tuple(
            each.public_bytes(form)
            for each in (endorser, root.certificate, world.catalogue.certificate)
            for form in (Encoding.DER, Encoding.PEM)
        ),
        certificate,
    )

    eacl = (
        b"# a comment\n access_id_CA  X509  '/O=Experiment/CN=Experiment CA'\n"
        b' pos_rights  globus  CA:sign\n cond_subjects globus \'"/O=Exp*/CN=J?ne*" "/C=DE/*"\'\n'
    )
    igtf = (
        b'#NAMESPACES-VERSION: 1.0\nTO Issuer "/O=Experiment/CN=Experiment CA" \\\n'
        b'  PERMIT Subject "/O=Experiment/.*"\nTO Issuer SELF DENY Subject "/O=Exp.*/CN=John.*"\n'
    )

    def policy(data: bytes) -> None:
        for name in ("a.signing_policy", "a.namespaces"):
            parsed = parse_policy(name, data)
            assert bool(parsed.rules) != bool(parsed.fault)
            trust = replace(world.trust, policies=(parsed,))
            reasons = check_chain(endorser, trust=trust, now=NOW)
            assert reasons or not parsed.fault

    yield Target("policy", (eacl, igtf), policy)


def _orders(world: World) -> Iterator[Target]:
    public = CONTROLLER_KEY.public_key()
    keys = {key_id(public): public}
    payload = '{"v": 1, "node": "wn001", "images": [{"active": true}]}'
    sealed = seal("desired", payload, CONTROLLER_KEY)

    def envelope(data: bytes) -> None:
        with contextlib.suppress(EnvelopeRefused):
            assert open_envelope(data, kind="desired", keys=keys) == payload

    yield Target("envelope", (sealed,), envelope)

    info = (
        b"d9:file treed9:image.rawd0:d6:lengthi67108864e11:pieces root32:" + b"r" * 32 + b"eee"
        b"12:meta versioni2e4:name36:7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f6c1112:piece lengthi262144e"
        b"7:privatei1ee"
    )
    parsed = parse_info(info)

    def dictionary(data: bytes) -> None:
        with contextlib.suppress(TorrentMismatch):
            parse_info(data)
        with contextlib.suppress(TorrentMismatch):
            check_info(
                data,
                infohash=parsed.infohash,
                size_bytes=parsed.size_bytes,
                piece_bytes=parsed.piece_bytes,
            )
            assert data == info

    yield Target("info-dictionary", (info,), dictionary)


def _texts(world: World) -> Iterator[Target]:
    subject = world.endorser.certificate.subject

    def name(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        try:
            parsed = DistinguishedName.parse(text)
        except ValueError:
            assert not same_name(text, subject)
            return
        parsed.slash(), parsed.rfc4514(), parsed.flat()
        genuine = DistinguishedName.from_x509(subject)
        assert same_name(text, subject) == (parsed == genuine)

    yield Target(
        "name",
        (
            b"/O=Experiment/CN=Jane Endorser",
            b"CN=Jane Endorser,O=Experiment",
            rb"/DC=org/CN=host\/wn1.example.org/emailAddress=a@example.org/UID=7",
            rb"UID=7,E=a@example.org,CN=Zo\C3\AB\, Inc.,DC=org",
        ),
        name,
    )


def encoded(data: bytes) -> str:
    """An input as it is put into a regression test."""
    return base64.b64encode(data).decode() if len(data) < 20_000 else f"{len(data)} bytes"
