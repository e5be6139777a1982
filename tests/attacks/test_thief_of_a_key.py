"""The thief of a key: what a key is good for, and what it is not, once it is in other hands.

The catalogue's own key has stories of its own: tests/revocation/test_stolen_key.py and
tests/head/test_catalogue_key.py.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from agent.authority import Authority as Node
from distrib.bus.messages import Desired
from distrib.bus.schema import encode
from distrib.errors import SiteListStale, TrustRefused
from distrib.trust.envelope import EnvelopeRefused, key_id, open_envelope, seal
from distrib.trust.signature import sign_smime
from distrib.trust.sitelist import ControllerKey, render_site_list, verify_site_list
from distrib.trust.testpki import Authority, Role
from distrib.trust.verify import Expectation, Profile, verify
from tests.trust.conftest import CONTROLLER_KEY, LIST_ID, NOW, World, codes, make_crl

OTHERS = [role for role in Role if role not in {Role.CATALOGUE, Role.ENDORSER}]


@pytest.mark.parametrize("role", OTHERS)
def test_no_other_certificate_of_the_site_signs_site_lists(world: World, role: Role) -> None:
    """Not even if the list states its holder as the endorser."""
    name = "wn007" if role is Role.NODE else f"stolen-{role}"
    thief = world.site.issue(role, name, now=NOW)
    own = replace(
        world.site_list(),
        endorser=replace(world.site_list().endorser, dn=world.image_list(thief).endorser.dn),
    )
    verdict = verify_site_list(
        world.signed_site_list(own, by=thief), trust=world.site_trust, now=NOW
    )
    assert codes(verdict.reasons) == ["role-missing"]


def test_a_role_that_only_looks_like_the_catalogues(world: World) -> None:
    root, key = world.site, world.catalogue.key
    assert isinstance(root.key, rsa.RSAPrivateKey)
    assert isinstance(key, rsa.RSAPrivateKey)
    near = (
        "urn:distrib:role:Catalogue",
        "URN:distrib:role:catalogue",
        "urn:distrib:role:catalogue ",
        "urn:distrib:role:catalogue/x",
        "urn:distrib:role:node?urn:distrib:role:catalogue",
        "https://urn:distrib:role:catalogue",
    )
    for uri in near:
        certificate = (
            x509.CertificateBuilder()
            .subject_name(world.catalogue.certificate.subject)
            .issuer_name(root.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(days=1))
            .not_valid_after(NOW + timedelta(days=1))
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), False
            )
            .sign(root.key, world.catalogue.certificate.signature_hash_algorithm)  # type: ignore[arg-type]
        )
        message = sign_smime(render_site_list(world.site_list()), certificate, key)
        verdict = verify_site_list(message, trust=world.site_trust, now=NOW)
        assert codes(verdict.reasons) == ["role-missing"], uri


def test_the_catalogue_of_another_site(world: World, tmp_path: Path) -> None:
    """Of the same name, made in the same way: its CA is another."""
    elsewhere = Authority.create(tmp_path / "elsewhere", "Example Site", now=NOW)
    foreign = elsewhere.issue(Role.CATALOGUE, now=NOW)
    assert foreign.certificate.subject == world.catalogue.certificate.subject
    verdict = verify_site_list(world.signed_site_list(by=foreign), trust=world.site_trust, now=NOW)
    assert codes(verdict.reasons) == ["chain-untrusted"]


def test_a_site_list_in_the_place_of_an_endorsers_and_the_other_way_round(world: World) -> None:
    """An endorser's keys cannot make a site's list of his, and a site's list is none of his."""
    claiming = replace(world.image_list(), extra={"distrib:profile": "site-list/1"})
    expected = Expectation(identifier=LIST_ID, profile=Profile.SITE)
    verdict = verify(world.signed(claiming), trust=world.trust, expectation=expected, now=NOW)
    assert codes(verdict.reasons) == ["role-missing"]
    theirs = Expectation(identifier=LIST_ID)
    verdict = verify(world.signed_site_list(), trust=world.trust, expectation=theirs, now=NOW)
    assert codes(verdict.reasons) == ["chain-untrusted", "identifier-mismatch"]


def test_a_list_that_a_thief_dates_back_before_the_revocation(world: World) -> None:
    """There is no proof of when something was signed: a revoked key has signed nothing."""
    root = world.experiment
    assert isinstance(root.key, rsa.RSAPrivateKey)
    revoked = make_crl(
        root.certificate.subject,
        root.key,
        world.endorser.certificate,
        last_update=NOW - timedelta(minutes=1),
    )
    early = replace(world.image_list(), created=NOW - timedelta(days=20))
    verdict = verify(
        world.signed(early),
        trust=world.trust.with_crls(revoked),
        expectation=Expectation(),
        now=NOW,
    )
    assert codes(verdict.reasons) == ["certificate-revoked"]


def test_a_thief_who_keeps_the_crl_from_the_site(world: World) -> None:
    """An old CRL that does not know of the theft is good until it expires, and no longer."""
    root = world.experiment
    assert isinstance(root.key, rsa.RSAPrivateKey)
    frozen = make_crl(root.certificate.subject, root.key, next_update=NOW + timedelta(days=3))
    trust = replace(world.trust, crls=(frozen,))

    def after(days: float) -> list[str]:
        now = NOW + timedelta(days=days)
        verdict = verify(world.signed(), trust=trust, expectation=Expectation(), now=now)
        return codes(verdict.reasons)

    assert after(2.9) == []
    assert after(3.1) == ["crl-expired"]
    bare = replace(world.trust, crls=())
    verdict = verify(world.signed(), trust=bare, expectation=Expectation(), now=NOW)
    assert codes(verdict.reasons) == ["crl-missing"]


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def node(tmp_path: Path, world: World, clock: Clock) -> Node:
    made = Node(
        tmp_path / "state",
        node="wn001",
        trust=world.site_trust,
        max_age_s=72 * 3600,
        clock_skew_s=300,
        clock=clock,
    )
    made.load()
    return made


def test_a_broker_that_passes_on_nothing_new_is_believed_for_three_days(
    world: World, node: Node, clock: Clock
) -> None:
    """He replays the last list of a site that has denied its image since."""
    lasting = replace(world.site_list(), expires=NOW + timedelta(days=25))
    message = world.signed_site_list(lasting)
    node.offer_site_list(message)
    for hours in (1, 24, 71):
        clock.now = NOW + timedelta(hours=hours)
        node.offer_site_list(message)
        assert node.require_leasable().images
    clock.now = NOW + timedelta(hours=73)
    node.offer_site_list(message)
    with pytest.raises(SiteListStale):
        node.require_leasable()


def test_a_crl_that_is_older_or_another_cas_or_his_own_takes_nobody_off_the_list(
    world: World, node: Node
) -> None:
    node.offer_site_list(world.signed_site_list())
    experiment, site = world.experiment, world.site
    assert isinstance(experiment.key, rsa.RSAPrivateKey)
    foreign = make_crl(experiment.certificate.subject, experiment.key, world.catalogue.certificate)
    forged = make_crl(site.certificate.subject, experiment.key, world.catalogue.certificate)
    for crl in (foreign, forged):
        with pytest.raises(TrustRefused, match="CRL refused"):
            node.offer_crl(crl.public_bytes(Encoding.PEM))
    assert node.require_leasable().images


def test_orders_by_the_controller_of_another_site_for_a_node_of_the_same_name(
    world: World, node: Node
) -> None:
    node.offer_site_list(world.signed_site_list())
    stranger = Ed25519PrivateKey.generate()
    wanted = encode(Desired(node="wn001", issued_at=NOW, generation=1)).decode()
    with pytest.raises(EnvelopeRefused) as refused:
        node.offer_desired(seal("desired", wanted, stranger))
    assert refused.value.reasons[0]["code"] == "envelope-key-unknown"
    # He says that it is the site's key.
    forged = json.loads(seal("desired", wanted, stranger))
    assert key_id(stranger.public_key()) in forged.values()
    own, theirs = key_id(stranger.public_key()), key_id(CONTROLLER_KEY.public_key())
    renamed = json.dumps(forged).replace(own, theirs).encode()
    with pytest.raises(EnvelopeRefused) as refused:
        open_envelope(renamed, kind="desired", keys=world.site_list().keys())
    assert refused.value.reasons[0]["code"] == "envelope-signature"
    # Or that the site's key is his, in a list of his own.
    his = replace(world.site_list(), controller_keys=(ControllerKey.of(stranger.public_key()),))
    with pytest.raises(TrustRefused):
        node.offer_site_list(world.signed_site_list(his, by=world.node))
    assert node.desired is None
