"""What a node believes: forged, replayed and old documents change nothing, and are told apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from agent.authority import Authority, GenerationDown, OrdersExpired, WrongNode
from distrib.bus.messages import Cancel, Desired, Orders
from distrib.bus.schema import encode
from distrib.errors import DistribError, NotReady, SiteListStale, TrustRefused
from distrib.trust.envelope import seal
from distrib.trust.sitelist import ControllerKey, SiteList
from distrib.trust.testpki import Role
from tests.trust.conftest import CONTROLLER_KEY, NOW, World, make_crl, world

__all__ = ["world"]

MAX_AGE_S = 72 * 3600


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def node(tmp_path: Path, world: World, clock: Clock) -> Callable[[], Authority]:
    """An agent's authority over one state directory; calling it again is a restart."""

    def start() -> Authority:
        authority = Authority(
            tmp_path / "state",
            node="wn001",
            trust=world.site_trust,
            max_age_s=MAX_AGE_S,
            clock_skew_s=300,
            clock=clock,
        )
        authority.load()
        return authority

    return start


def newer(world: World, **changes: object) -> SiteList:
    return replace(world.site_list(), version="1772366500", **changes)


def desired(
    generation: int, *, node: str = "wn001", key: Ed25519PrivateKey = CONTROLLER_KEY
) -> bytes:
    wanted = Desired(node=node, issued_at=NOW, generation=generation)
    return seal("desired", encode(wanted).decode(), key)


def orders(sequence: int, *, expires_at: datetime = NOW + timedelta(minutes=1)) -> bytes:
    wanted = Orders(
        node="wn001",
        issued_at=NOW,
        expires_at=expires_at,
        sequence=sequence,
        orders=(Cancel(infohash="a" * 64),),
    )
    return seal("orders", encode(wanted).decode(), CONTROLLER_KEY)


def refused(step: Callable[[], object]) -> list[str]:
    with pytest.raises(DistribError) as caught:
        step()
    error = caught.value
    reasons = error.reasons if isinstance(error, TrustRefused) else ()
    return [reason["code"] for reason in reasons] or [error.code]


def test_an_accepted_list_survives_a_restart(node: Callable[[], Authority], world: World) -> None:
    assert node().offer_site_list(world.signed_site_list())
    again = node()
    assert again.require_leasable().version == "1772366400"
    assert not again.offer_site_list(world.signed_site_list()) or again.site_list is not None


def test_a_flipped_byte_an_expired_list_and_an_older_version_have_codes_of_their_own(
    node: Callable[[], Authority], world: World
) -> None:
    authority = node()
    authority.offer_site_list(world.signed_site_list())
    flipped = world.signed_site_list(newer(world)).replace(b'"worker"', b'"walker"')
    old = newer(world, created=NOW - timedelta(days=9), expires=NOW - timedelta(days=6))
    lower = replace(world.site_list(), version="1772366399")
    cases = {
        "signature-invalid": flipped,
        "list-expired": world.signed_site_list(old),
        "version-down": world.signed_site_list(lower),
    }
    for code, message in cases.items():
        assert refused(lambda m=message: authority.offer_site_list(m)) == [code]
        assert authority.refused[code] == 1
    assert authority.require_leasable().version == "1772366400"


def test_the_same_version_with_other_bytes_is_refused(
    node: Callable[[], Authority], world: World
) -> None:
    authority = node()
    authority.offer_site_list(world.signed_site_list())
    other = replace(world.site_list(), images=())
    assert refused(lambda: authority.offer_site_list(world.signed_site_list(other))) == [
        "version-same-other-bytes"
    ]
    assert authority.image(world.site_image().infohash) is not None


def test_an_endorser_cannot_sign_a_site_list(node: Callable[[], Authority], world: World) -> None:
    authority = node()
    message = world.signed_site_list(by=world.endorser)
    assert "chain-untrusted" in refused(lambda: authority.offer_site_list(message))
    assert "role-missing" in refused(
        lambda: authority.offer_site_list(world.signed_site_list(by=world.node))
    )
    with pytest.raises(NotReady):
        authority.require_leasable()


def test_an_old_list_gives_no_new_leases(
    node: Callable[[], Authority], world: World, clock: Clock
) -> None:
    authority = node()
    long_lived = replace(world.site_list(), expires=NOW + timedelta(days=30))
    authority.offer_site_list(world.signed_site_list(long_lived))
    clock.now = NOW + timedelta(seconds=MAX_AGE_S + 1)
    with pytest.raises(SiteListStale, match="too old"):
        authority.require_leasable()
    with pytest.raises(SiteListStale):
        node().require_leasable()
    assert node().image(world.site_image().infohash) is not None


def test_a_crl_takes_a_stolen_catalogue_key_out_of_force_and_an_older_one_does_not_bring_it_back(
    node: Callable[[], Authority], world: World, clock: Clock
) -> None:
    authority = node()
    authority.offer_site_list(world.signed_site_list())
    clock.now = NOW + timedelta(minutes=10)
    ca = world.site
    before = make_crl(ca.certificate.subject, ca.key, last_update=NOW + timedelta(minutes=1))
    after = make_crl(
        ca.certificate.subject,
        ca.key,
        world.catalogue.certificate,
        last_update=NOW + timedelta(minutes=2),
    )
    assert authority.offer_crl(before.public_bytes(Encoding.PEM))
    authority.require_leasable()
    assert authority.offer_crl(after.public_bytes(Encoding.PEM))
    with pytest.raises(SiteListStale, match="no longer authentic"):
        authority.require_leasable()
    assert not authority.offer_crl(before.public_bytes(Encoding.PEM))
    with pytest.raises(SiteListStale):
        authority.require_leasable()
    forged = make_crl(ca.certificate.subject, world.experiment.key)
    with pytest.raises(TrustRefused, match="CRL refused"):
        authority.offer_crl(forged.public_bytes(Encoding.PEM))
    unreadable = after.public_bytes(Encoding.DER).replace(b"Example Site", b"Example Sit\xc5")
    with pytest.raises(TrustRefused, match="CRL refused"):
        authority.offer_crl(x509.load_der_x509_crl(unreadable).public_bytes(Encoding.PEM))


def test_a_stolen_catalogue_key_cannot_lock_the_node_out(
    node: Callable[[], Authority], world: World, clock: Clock
) -> None:
    authority = node()
    authority.offer_site_list(world.signed_site_list())
    thief = Ed25519PrivateKey.generate()
    far = replace(world.site_list(), version="99999999999")
    assert refused(lambda: authority.offer_site_list(world.signed_site_list(far))) == [
        "number-ahead"
    ]
    his = newer(world, controller_keys=(ControllerKey.of(thief.public_key()),))
    authority.offer_site_list(world.signed_site_list(his))
    assert refused(lambda: authority.offer_desired(desired(1 << 40, key=thief))) == ["number-ahead"]
    authority.offer_desired(desired(int(NOW.timestamp()) + 9999, key=thief))
    clock.now = NOW + timedelta(minutes=10)
    ca = world.site
    crl = make_crl(
        ca.certificate.subject,
        ca.key,
        world.catalogue.certificate,
        last_update=NOW + timedelta(minutes=2),
    )
    authority.offer_crl(crl.public_bytes(Encoding.PEM))
    assert authority.desired is None
    assert refused(lambda: authority.offer_desired(desired(6, key=thief))) == ["not-ready"]
    successor = ca.issue(Role.CATALOGUE, "second", now=NOW)
    good = replace(world.site_list(), version="1772366401")
    authority.offer_site_list(world.signed_site_list(good, by=successor))
    assert authority.offer_desired(desired(7)).generation == 7
    assert node().require_leasable().version == "1772366401"


def test_the_same_bytes_under_another_name_are_another_image(
    node: Callable[[], Authority], world: World
) -> None:
    authority = node()
    authority.offer_site_list(world.signed_site_list())
    image = world.site_image()
    assert authority.entry(image.identifier, image.version, image.infohash) == image
    assert authority.entry(image.identifier, "9.9.9", image.infohash) is None


def test_orders_are_the_controllers_for_this_node_and_never_go_back(
    node: Callable[[], Authority], world: World
) -> None:
    authority = node()
    authority.offer_site_list(world.signed_site_list())
    assert authority.offer_desired(desired(5)).generation == 5
    foreign = Ed25519PrivateKey.generate()
    assert refused(lambda: authority.offer_desired(desired(6, key=foreign))) == [
        "envelope-key-unknown"
    ]
    tampered = desired(6).replace(b"wn001", b"wn002")
    assert refused(lambda: authority.offer_desired(tampered)) == ["envelope-signature"]
    assert refused(lambda: authority.offer_desired(orders(6))) == ["envelope-kind"]
    with pytest.raises(WrongNode):
        authority.offer_desired(desired(6, node="wn002"))
    with pytest.raises(GenerationDown):
        node().offer_desired(desired(4))
    assert node().generation == 5


def test_a_desired_state_that_comes_before_the_site_list_is_taken_up_after_it(
    node: Callable[[], Authority], world: World
) -> None:
    authority = node()
    with pytest.raises(NotReady):
        authority.offer_desired(desired(5))
    authority.offer_site_list(world.signed_site_list())
    assert authority.desired is not None
    assert authority.generation == 5


def test_orders_are_carried_out_once_and_in_time(
    node: Callable[[], Authority], world: World
) -> None:
    authority = node()
    authority.offer_site_list(world.signed_site_list())
    assert authority.offer_orders(orders(1)).sequence == 1
    with pytest.raises(GenerationDown):
        node().offer_orders(orders(1))
    with pytest.raises(OrdersExpired):
        authority.offer_orders(orders(2, expires_at=NOW - timedelta(minutes=1)))


@pytest.mark.parametrize("rubbish", [b"", b"{", b"[" * 100_000, b"\xff" * 100, b'{"v": 2}'])
def test_rubbish_from_the_broker_is_counted_and_changes_nothing(
    node: Callable[[], Authority], world: World, rubbish: bytes
) -> None:
    authority = node()
    authority.offer_site_list(world.signed_site_list())
    offers: tuple[Callable[[bytes], object], ...] = (
        authority.offer_site_list,
        authority.offer_crl,
        authority.offer_desired,
        authority.offer_orders,
    )
    for offer in offers:
        with pytest.raises(DistribError) as caught:
            offer(rubbish)
        assert "\n" not in caught.value.message
    assert sum(authority.refused.values()) >= len(offers)
    assert authority.require_leasable().version == "1772366400"
