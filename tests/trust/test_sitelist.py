"""The site list: the example of its page, its rules, and what an IMAGE on a command line means."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from distrib.errors import TrustRefused
from distrib.trust.imagelist import ImageListInvalid
from distrib.trust.signature import sign_smime
from distrib.trust.sitelist import (
    ImageRef,
    ImageRefInvalid,
    SiteList,
    is_stale,
    parse_image_ref,
    parse_site_list,
    render_site_list,
    verify_site_list,
)
from distrib.trust.testpki import Role

from .conftest import CONTROLLER_KEY, IMAGE_ID, World, codes, make_crl

PAGE = Path(__file__).parents[2] / "docs" / "formats" / "site-list.md"


def example() -> bytes:
    block = re.search(r"```json\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert block is not None
    return block[1].encode()


def edited(edit: Callable[[dict[str, Any]], Any]) -> bytes:
    document = json.loads(example())
    edit(document["hv:imagelist"])
    return json.dumps(document).encode()


def first(document: dict[str, Any]) -> dict[str, Any]:
    image: dict[str, Any] = document["hv:images"][0]["hv:image"]
    return image


def faults(content: bytes) -> list[str]:
    with pytest.raises(ImageListInvalid) as refused:
        parse_site_list(content)
    return codes(refused.value.found)


def judge(world: World, message: bytes, *, hours: float = 0, **expected: Any) -> list[str]:
    now = world.now + timedelta(hours=hours)
    return codes(verify_site_list(message, trust=world.site_trust, now=now, **expected).reasons)


class TestFormat:
    def test_the_example_of_the_page(self) -> None:
        site_list = parse_site_list(example())
        image = site_list.images[0]
        assert site_list.site == "Example Site"
        assert image.ref == "7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f6c11@1.0.0"
        assert (image.aliases, image.audience, image.state) == (("ccin2p3",), "all", "approved")
        assert image.piece_bytes == 256 * 1024
        assert image.origin.endorser_dn == "/O=Experiment/CN=Endorser"
        assert list(site_list.keys()) == ["21fe31dfa154a261"]

    def test_the_example_is_what_is_written(self) -> None:
        assert json.loads(render_site_list(parse_site_list(example()))) == json.loads(example())

    def test_a_superseded_version_for_some_users(self, world: World) -> None:
        until = world.now + timedelta(days=30)
        old = replace(
            world.site_image("0.9"), state="superseded", until=until, audience=("alice", "bob")
        )
        site_list = replace(world.site_list(), images=(world.site_image("1.0"), old))
        read = parse_site_list(render_site_list(site_list))
        assert read == site_list
        assert read.images[1].admits("alice")
        assert not read.images[1].admits("eve")
        assert read.images[0].admits("eve")

    def test_keys_of_an_endorser_that_look_like_the_sites_are_dropped(self, world: World) -> None:
        entry = world.site_image()
        injected = {"distrib:until": "2099-01-01T00:00:00Z", "ad:mpuri": "kept"}
        image = replace(entry, image=replace(entry.image, extra=injected))
        read = parse_site_list(render_site_list(replace(world.site_list(), images=(image,))))
        assert read.images[0].until is None
        assert read.images[0].image.extra == {"ad:mpuri": "kept"}

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("distrib:infohash", "a3"),
            ("distrib:infohash", "z" * 64),
            ("distrib:size_bytes", -1),
            ("distrib:piece_bytes", 1000),
            ("distrib:piece_bytes", 8192),
            ("distrib:piece_bytes", 16384 * 3),
            ("distrib:format", "qcow2"),
            ("distrib:sha512", "00"),
            ("distrib:state", "blessed"),
            ("distrib:until", "soon"),
            ("distrib:aliases", ["a b"]),
            ("distrib:aliases", "ccin2p3"),
            ("distrib:aliases", ["twice", "twice"]),
            ("distrib:aliases", [IMAGE_ID]),
            ("distrib:audience", "nobody"),
            ("distrib:audience", ["a:b"]),
            ("distrib:origin", "there"),
        ],
    )
    def test_faults_of_an_image(self, key: str, value: object) -> None:
        assert "field-invalid" in faults(edited(lambda doc: first(doc).update({key: value})))

    @pytest.mark.parametrize("key", ["infohash", "size_bytes", "sha512", "origin", "audience"])
    def test_what_must_be_there(self, key: str) -> None:
        assert "field-missing" in faults(edited(lambda doc: first(doc).pop(f"distrib:{key}")))

    def test_an_endorsers_list_is_no_site_list(self, world: World) -> None:
        assert "field-missing" in faults(world.content())
        other = edited(lambda doc: doc.update({"distrib:profile": "site-list/2"}))
        assert faults(other) == ["field-invalid"]

    @pytest.mark.parametrize(
        "key",
        [
            {"id": "0" * 16, "ed25519": "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="},
            {"id": "21fe31dfa154a261", "ed25519": "AAAA"},
            {"id": "21fe31dfa154a261"},
            "21fe31dfa154a261",
        ],
    )
    def test_a_controller_key_must_be_what_its_id_says(self, key: object) -> None:
        assert faults(edited(lambda doc: doc.update({"distrib:controller_keys": [key]})))

    def test_an_info_hash_occurs_once(self, world: World) -> None:
        twice = (world.site_image("1.0"), replace(world.site_image("0.9"), aliases=()))
        same = tuple(replace(image, infohash="a3" * 32) for image in twice)
        with pytest.raises(ImageListInvalid, match="info-hash a3a3") as refused:
            render_site_list(replace(world.site_list(), images=same))
        assert codes(refused.value.found) == ["field-invalid"]

    def test_a_faulty_list_is_not_written(self, world: World) -> None:
        bad = replace(world.site_image(), infohash="zz")
        with pytest.raises(ImageListInvalid):
            render_site_list(replace(world.site_list(), images=(bad,)))


class TestVerdict:
    def test_a_good_list(self, world: World) -> None:
        message = world.signed_site_list()
        verdict = verify_site_list(message, trust=world.site_trust, now=world.now)
        assert verdict.accepted
        assert verdict.require() == world.site_list()
        assert list(verdict.require().keys().values()) == [CONTROLLER_KEY.public_key()]

    def test_three_faults_three_codes(self, world: World) -> None:
        """One flipped byte, an expired list, an older version: no two look alike."""
        message = world.signed_site_list()
        flipped = message.replace(b"Example Site", b"Example Sitf", 1)
        assert judge(world, flipped) == ["signature-invalid"]
        assert judge(world, message, hours=73) == ["list-expired"]
        assert judge(world, message, last_version="1772366401") == ["version-down"]

    def test_the_same_version_with_other_bytes(self, world: World) -> None:
        message = world.signed_site_list()
        own = verify_site_list(message, trust=world.site_trust, now=world.now).message_sha512
        version = world.site_list().version
        assert judge(world, message, last_version=version, last_sha512=own) == []
        assert judge(world, message, last_version=version, last_sha512="0" * 128) == [
            "version-same-other-bytes"
        ]

    def test_only_the_catalogue_may_sign(self, world: World) -> None:
        """The node's certificate is the site CA's too."""
        message = world.signed_site_list(by=world.node)
        assert judge(world, message) == ["role-missing", "signer-not-endorser"]

    def test_an_experiment_cannot_make_site_lists(self, world: World) -> None:
        """Not even with a certificate that claims the role: its CA is not the site's."""
        claimed = world.experiment.issue(Role.CATALOGUE, now=world.now)
        assert "chain-untrusted" in judge(world, world.signed_site_list(by=claimed))

    def test_a_revoked_catalogue(self, world: World) -> None:
        crl = revoked_catalogue(world)
        trust = world.site_trust.with_crls(crl)
        verdict = verify_site_list(world.signed_site_list(), trust=trust, now=world.now)
        assert codes(verdict.reasons) == ["certificate-revoked"]
        assert not verdict.authentic

    def test_several_versions_of_one_image(self, world: World) -> None:
        two = (world.site_image("1.0"), world.site_image("1.1"))
        assert judge(world, world.signed_site_list(with_images(world, *two))) == []
        same = (world.site_image("1.0"), replace(world.site_image("1.0"), infohash="ab" * 32))
        assert judge(world, world.signed_site_list(with_images(world, *same))) == ["uuid-duplicate"]

    def test_another_list_of_the_same_site(self, world: World) -> None:
        assert judge(world, world.signed_site_list(), identifier=IMAGE_ID) == [
            "identifier-mismatch"
        ]

    def test_an_endorsers_list_in_its_place(self, world: World) -> None:
        catalogue = world.catalogue
        message = sign_smime(world.content(), catalogue.certificate, catalogue.key)
        assert judge(world, message) == ["field-missing", "signer-not-endorser"]

    def test_stale_is_told_and_not_refused(self, world: World) -> None:
        site_list = replace(world.site_list(), expires=world.now + timedelta(days=20))
        message = world.signed_site_list(site_list)
        for hours, stale in ((71, False), (73, True)):
            now = world.now + timedelta(hours=hours)
            verdict = verify_site_list(
                message, trust=world.site_trust, now=now, max_age_s=72 * 3600
            )
            assert (verdict.accepted, verdict.stale) == (True, stale)
            assert is_stale(world.now, now=now) == stale

    def test_after_a_long_night_off_the_list_is_still_known_to_be_genuine(
        self, world: World
    ) -> None:
        message = world.signed_site_list()
        later = world.now + timedelta(days=40)
        verdict = verify_site_list(message, trust=world.site_trust, now=later, max_age_s=72 * 3600)
        assert codes(verdict.reasons) == ["crl-expired", "list-expired"]
        assert verdict.authentic
        assert verdict.stale
        assert verdict.site_list == world.site_list()
        with pytest.raises(TrustRefused, match="list-expired"):
            verdict.require()


def with_images(world: World, *images: Any) -> SiteList:
    return replace(world.site_list(), images=tuple(images))


def revoked_catalogue(world: World) -> x509.CertificateRevocationList:
    assert isinstance(world.site.key, rsa.RSAPrivateKey)
    name = world.site.certificate.subject
    return make_crl(
        name,
        world.site.key,
        world.catalogue.certificate,
        last_update=world.now - timedelta(seconds=1),
    )


class TestImageRef:
    def test_forms(self) -> None:
        assert parse_image_ref("ccin2p3") == ImageRef("ccin2p3", None)
        assert parse_image_ref("ccin2p3@1.0@b") == ImageRef("ccin2p3", "1.0@b")
        assert parse_image_ref(f"{IMAGE_ID.upper()}@1") == ImageRef(IMAGE_ID, "1")
        assert parse_image_ref(IMAGE_ID).is_uuid

    @pytest.mark.parametrize("text", ["", "@1", "a b", "a@", "-x", "../etc", "x" * 64, "a\n"])
    def test_other_texts_are_usage_errors(self, text: str) -> None:
        with pytest.raises(ImageRefInvalid) as error:
            parse_image_ref(text)
        assert error.value.exit_status == 2

    def test_what_a_site_list_finds(self, world: World) -> None:
        old = replace(world.site_image("1.9"), state="superseded")
        new = replace(world.site_image("1.10"), aliases=("worker",))
        older = replace(world.site_image("1.2"), state="superseded")
        site_list = with_images(world, old, older, new)
        assert site_list.find("worker") == (new, old, older)
        assert site_list.find(IMAGE_ID) == (new, old, older)
        assert site_list.find("worker@1.9") == (old,)
        assert site_list.find("worker@3") == ()
        assert site_list.find("another") == ()
