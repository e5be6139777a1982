"""Site B follows the site list of site A: it takes an image over, and later its revocation."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from distrib.catalogue.subscriptions import Wanted
from distrib.db.intake_models import Take
from distrib.trust.names import slash_form
from distrib.trust.testpki import Demo, create_demo
from tests.head.stories import LIST, Endorser, Head, entry, image_bytes, serve
from tests.subscriptions.server import ListServer
from tests.subscriptions.stories import Follower, codes, open_site, remarks

ONE = "7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f0001"
TWO = "7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f0002"


@dataclass
class Sites:
    """``a`` follows the experiment, ``b`` follows ``a``."""

    a: Follower
    b: Follower


@pytest.fixture(scope="session")
def other_pki(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Site B's CA."""
    return create_demo(
        tmp_path_factory.mktemp("other"), site="Site B", nodes=[], now=datetime.now(UTC)
    )


def catalogue_of(pki: Demo) -> tuple[str, str]:
    pem = (pki.site.directory / "certs" / "catalogue.pem").read_bytes()
    certificate = x509.load_pem_x509_certificate(pem)
    return slash_form(certificate.subject), slash_form(certificate.issuer)


@pytest.fixture
def head_of_b(tmp_path: Path, pki: Demo, other_pki: Demo, logged: list[Any]) -> Iterator[Head]:
    """It believes the experiment's CA, and A's."""
    trust = tmp_path / "trust-of-b"
    shutil.copytree(pki.site.trust_directory, trust)
    shutil.copytree(pki.experiment.trust_directory, trust, dirs_exist_ok=True)
    made = open_site(tmp_path / "b", other_pki.site, trust, Ed25519PrivateKey.generate())
    yield made
    made.database.close()


@pytest.fixture
def sites(follower: Follower, head_of_b: Head) -> Iterator[Sites]:
    """A's API is up."""
    with serve(follower.head):
        yield Sites(follower, Follower(head_of_b, follower.server, follower.endorser))


def follow_a(sites: Sites, pki: Demo, take: Take = Take.ALL) -> None:
    dn, ca = catalogue_of(pki)
    wanted = Wanted(
        url=f"{sites.a.head.url}/api/v1/site-list",
        dn=dn,
        ca=ca,
        take=take,
        ca_file=sites.a.head.ca_file,
    )
    sites.b.row = sites.b.head.catalogue.subscriptions.add(wanted, actor="ops of b")


async def test_an_image_and_then_its_revocation_travel_from_site_to_site(
    sites: Sites, pki: Demo
) -> None:
    content = image_bytes(1)
    sites.a.subscribe()
    await sites.a.follows(entry(content, identifier=ONE), version="1")
    await sites.a.approve(ONE, content)

    follow_a(sites, pki)
    row = await sites.b.poll()
    assert (row.code, remarks(row)) == ("accepted", [])
    taken = sites.b.image(ONE)
    assert (taken.state, taken.source) == ("expected", "https://images.example.org/worker.raw")
    assert taken.endorser_dn == catalogue_of(pki)[0]
    # What site A says of its own copy does not travel.
    assert not [key for key in taken.entry if key.startswith("distrib:")]
    await sites.b.approve(ONE, content)
    [published] = sites.b.head.site_list().images
    assert published.origin.list == row.identifier

    denial = sites.a.head.catalogue.denial
    await asyncio.to_thread(denial.deny, ONE, "1.0.0", reason="hole", actor="ops of a")
    await asyncio.to_thread(sites.a.head.catalogue.publisher.publish_if_due)
    assert (await sites.b.poll()).code == "accepted"
    assert sites.b.image(ONE).state == "revoked"
    assert sites.b.head.site_list().images == ()


async def test_versions_of_a_site_list_stand_for_themselves(sites: Sites, pki: Demo) -> None:
    old, new = image_bytes(1), image_bytes(2)
    sites.a.subscribe(take=Take.KNOWN)
    await sites.a.follows(entry(old, identifier=ONE), version="1")
    await sites.a.approve(ONE, old)
    await sites.a.follows(entry(new, identifier=ONE, version="2.0.0"), version="2")
    await sites.a.approve(ONE, new, "2.0.0")
    assert sites.a.states() == {"0001@1.0.0": "superseded", "0001@2.0.0": "approved"}

    follow_a(sites, pki)
    await sites.b.poll()
    # What is superseded there is no news here.
    assert sites.b.states() == {"0001@1.0.0": "announced", "0001@2.0.0": "expected"}
    await sites.b.approve(ONE, new, "2.0.0")
    await asyncio.to_thread(
        sites.a.head.catalogue.denial.deny, ONE, "2.0.0", reason="hole", actor="ops of a"
    )
    await asyncio.to_thread(sites.a.head.catalogue.publisher.publish_if_due)
    await sites.b.poll()
    # The UUID is still there, by its older version; the denied one is off at B all the same.
    assert sites.b.states() == {"0001@1.0.0": "announced", "0001@2.0.0": "revoked"}


async def test_what_b_has_from_the_experiment_stays_the_experiments(
    sites: Sites, pki: Demo, server: ListServer, endorser: Endorser
) -> None:
    one, two = image_bytes(1), image_bytes(2)
    sites.a.subscribe()
    await sites.a.follows(entry(one, identifier=ONE), entry(two, identifier=TWO), version="1")
    await sites.a.approve(ONE, one)
    await sites.a.approve(TWO, two)
    direct = Follower(sites.b.head, server, Endorser(endorser.issued, identifier=LIST))
    direct.subscribe(url=f"{server.base}/direct")
    server.serve(direct.endorser.sign(entry(one, identifier=ONE), version="1"), "/direct")
    await direct.poll()
    follow_a(sites, pki)
    row = await sites.b.poll()
    assert (row.code, remarks(row)) == ("accepted", [(f"{ONE}@1.0.0", "uuid-foreign")])
    assert sites.b.states() == {"0001@1.0.0": "announced", "0002@1.0.0": "expected"}


async def test_who_is_no_catalogue_signs_no_site_list(
    sites: Sites, pki: Demo, server: ListServer, endorser: Endorser
) -> None:
    """The rules of site lists are looser on UUIDs: an endorser may not choose them."""
    plain = endorser.sign(entry(image_bytes(1), identifier=ONE), version="1")
    marked = resigned(plain, endorser)
    server.serve(marked)
    follower = Follower(sites.b.head, server, endorser)
    follower.subscribe(identifier=LIST)
    found = codes(await follower.poll())
    assert "role-missing" in found
    assert follower.states() == {}


def resigned(message: bytes, endorser: Endorser) -> bytes:
    """The list again, as if it were a site's."""
    import json

    from distrib.trust.signature import open_smime, sign_smime

    document: dict[str, Any] = json.loads(open_smime(message).document)
    document["hv:imagelist"]["distrib:profile"] = "site-list/1"
    content = json.dumps(document).encode()
    return sign_smime(content, endorser.issued.certificate, endorser.issued.key)
