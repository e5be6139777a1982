"""An endorser leaves, or is replaced: who may sign a list that is followed."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from distrib.errors import OperatorError
from distrib.trust.testpki import Demo, Role
from tests.head.stories import LIST, Endorser, entry, image_bytes
from tests.subscriptions.stories import Follower, codes, open_site

ONE = "7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f0001"
IMAGE = entry(image_bytes(1), identifier=ONE)


def signs(follower: Follower, endorser: Endorser, version: str) -> None:
    """That endorser signs the list from now on."""
    signed = Endorser(endorser.issued, identifier=LIST).sign(IMAGE, version=version)
    follower.server.serve(signed)


async def test_an_endorser_is_replaced_and_the_images_stay(
    follower: Follower, successor: Endorser
) -> None:
    follower.subscribe()
    await follower.follows(IMAGE, version="1")
    await follower.approve(ONE, image_bytes(1))
    signs(follower, successor, "2")
    assert codes(await follower.poll()) == ["endorser-not-authorised"]

    endorsers = follower.head.catalogue.endorsers
    endorsers.add(dn=successor.dn, ca=successor.ca, list_identifier=LIST, actor="ops", replace=True)
    assert (await follower.poll()).code == "accepted"
    assert follower.states() == {"0001@1.0.0": "approved"}
    assert len(follower.head.site_list().images) == 1
    # Who has left signs no more.
    signs(follower, follower.endorser, "3")
    row = await follower.poll()
    assert codes(row) == ["endorser-not-authorised"]
    assert (row.dn, row.ca) == (successor.dn, successor.ca)
    assert "endorsers-replaced" in follower.head.actions()


async def test_two_endorsers_of_one_list_while_the_one_hands_over(
    follower: Follower, successor: Endorser
) -> None:
    follower.subscribe()
    await follower.follows(IMAGE, version="1")
    endorsers = follower.head.catalogue.endorsers
    added = endorsers.add(dn=successor.dn, ca=successor.ca, list_identifier=LIST, actor="ops")
    for version, endorser in (("2", successor), ("3", follower.endorser), ("4", successor)):
        signs(follower, endorser, version)
        assert (await follower.poll()).code == "accepted"
    endorsers.remove(added.id, actor="ops")
    # The same bytes again: today's endorsers count.
    assert codes(await follower.poll()) == ["endorser-not-authorised"]
    assert follower.states() == {"0001@1.0.0": "announced"}


async def test_a_certificate_that_is_revoked_is_believed_no_more_though_nothing_was_sent(
    follower: Follower, pki: Demo
) -> None:
    issued = pki.experiment.issue(Role.ENDORSER, "Leaver", now=datetime.now(UTC))
    leaver = Follower(follower.head, follower.server, Endorser(issued))
    leaver.subscribe()
    await leaver.follows(IMAGE, version="1")
    await leaver.approve(ONE, image_bytes(1))
    pki.experiment.revoke(issued.certificate, now=datetime.now(UTC))
    row = await leaver.poll()
    # The server said "not modified": what is kept is held against the CRL of today.
    assert "if-none-match" in leaver.server.requests[-1].headers
    assert codes(row) == ["certificate-revoked"]
    # What was accepted before stays until its list expires, or the site denies it.
    assert leaver.states() == {"0001@1.0.0": "approved"}


async def test_a_trust_directory_that_is_gone_is_told_as_such(
    follower: Follower, tmp_path: Path, pki: Demo
) -> None:
    trust = tmp_path / "trust"
    shutil.copytree(pki.experiment.trust_directory, trust)
    site = open_site(tmp_path / "other", pki.site, trust, Ed25519PrivateKey.generate())
    other = Follower(site, follower.server, follower.endorser)
    other.subscribe()
    await other.follows(IMAGE, version="1")
    shutil.rmtree(trust)
    row = await other.poll()
    assert (row.code, row.reasons["exit"], row.failures) == ("config-invalid", 2, 1)
    assert other.states() == {"0001@1.0.0": "announced"}
    site.database.close()


def test_nobody_is_replaced_for_every_list_at_once(follower: Follower) -> None:
    with pytest.raises(OperatorError):
        follower.head.catalogue.endorsers.add(
            dn="/CN=a", ca="/CN=b", list_identifier=None, actor="ops", replace=True
        )
