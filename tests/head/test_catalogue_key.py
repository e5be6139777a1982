"""The catalogue's key: behind a passphrase, signing unattended, replaced while the site runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from agent.authority import Authority as NodeAuthority
from agent.refusals import NumberAhead
from distrib.catalogue.identity import FollowedIdentity, SiteIdentity
from distrib.catalogue.passphrase import find_passphrase
from distrib.catalogue.publisher import Publisher
from distrib.controller_settings import ControllerSettings
from distrib.errors import ConfigInvalid, NotReady, SiteListStale, TrustRefused
from distrib.trust.directory import load_trust_directory
from distrib.trust.signature import open_smime, sign_smime
from distrib.trust.testpki import Authority, Role, create_demo
from tests.head.stories import Head

PASSPHRASE = b"correct horse battery staple"


@pytest.fixture
def site(tmp_path: Path) -> Authority:
    """A site of its own: its certificates are revoked and replaced here."""
    demo = create_demo(tmp_path / "pki", site="Example Site", nodes=["wn001"], now=now())
    return demo.site


def now() -> datetime:
    return datetime.now(UTC)


def load(site: Authority, **other: Any) -> SiteIdentity:
    return SiteIdentity.load(
        **{
            "site": "Example Site",
            "identifier": "1f8b6e0c-6b1e-4c6a-9d6e-2f0f4c1d9a10",
            "url": "https://head.example.org/api/v1/site-list",
            "certificate": site.certificate_path("catalogue"),
            "key": site.certificate_path("catalogue").with_suffix(".key"),
        }
        | other
    )


def encrypt(key: Path, form: PrivateFormat = PrivateFormat.PKCS8) -> None:
    """Put the key behind the passphrase."""
    private = load_pem_private_key(key.read_bytes(), password=None)
    pem = private.private_bytes(Encoding.PEM, form, BestAvailableEncryption(PASSPHRASE))
    key.write_bytes(pem)


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_an_encrypted_key_is_opened_and_its_faults_are_one_line(
    site: Authority, form: PrivateFormat
) -> None:
    key = site.certificate_path("catalogue").with_suffix(".key")
    assert load(site, passphrase=PASSPHRASE)  # one that is not needed does no harm
    encrypt(key, form)
    assert load(site, passphrase=PASSPHRASE).certificate
    with pytest.raises(ConfigInvalid, match=r"has a passphrase, and none was given") as missing:
        load(site)
    assert "DISTRIB_CATALOGUE_PASSPHRASE" in missing.value.hint
    with pytest.raises(ConfigInvalid, match=r"cannot be opened with the passphrase") as wrong:
        load(site, passphrase=b"guess")
    for error in (missing.value, wrong.value):
        assert "\n" not in error.message
        assert "guess" not in error.message


def test_the_passphrase_comes_from_a_file_a_credential_or_the_environment(tmp_path: Path) -> None:
    file, credentials = tmp_path / "passphrase", tmp_path / "credentials"
    credentials.mkdir()
    environment = {"DISTRIB_CATALOGUE_PASSPHRASE": "of the environment"}
    assert find_passphrase(environ={}) is None
    assert find_passphrase(environ=environment) == b"of the environment"
    environment["CREDENTIALS_DIRECTORY"] = str(credentials)
    assert find_passphrase(environ=environment) == b"of the environment"
    (credentials / "catalogue-passphrase").write_bytes(b"of systemd\n")
    assert find_passphrase(environ=environment) == b"of systemd"
    with pytest.raises(ConfigInvalid, match="No such file"):
        find_passphrase(file, environ=environment)
    file.write_bytes(b" spaces count \n")
    assert find_passphrase(file, environ=environment) == b" spaces count "


def test_a_controller_without_the_passphrase_says_so_in_one_line(
    site: Authority, tmp_path: Path
) -> None:
    certs = site.directory / "certs"
    encrypt(certs / "catalogue.key")
    flags = {
        "state_dir": tmp_path / "state",
        "trust.site": site.trust_directory,
        "trust.endorsers": site.trust_directory,
        "catalogue.cert": certs / "catalogue.pem",
        "catalogue.key": certs / "catalogue.key",
        "bus.ca": site.directory / "ca.pem",
        "bus.cert": certs / "controller.pem",
        "bus.key": certs / "controller.key",
        "api.cert": certs / "server.pem",
        "api.key": certs / "server.key",
    }
    config = tmp_path / "controller.toml"
    config.write_text(ControllerSettings.load(file=None, flags=flags, environ={}).as_toml())
    command = [sys.executable, "-m", "distrib", "controller", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 2
    assert "has a passphrase, and none was given" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_an_encrypted_key_signs_unattended_at_changes_and_before_expiry(
    head: Head, site: Authority
) -> None:
    key = site.certificate_path("catalogue").with_suffix(".key")
    encrypt(key)
    publisher = publisher_of(head, site, lambda: load(site, passphrase=PASSPHRASE))
    first = publisher.publish_if_due()
    assert first is not None
    signed, hours = [first], 7 * 24
    for _ in range(hours):
        head.clock.ahead += timedelta(hours=1)
        published = publisher.publish_if_due()
        assert published is not None
        # The one before would have held for long enough.
        assert published.created - signed[-1].created < timedelta(hours=72)
        signed.append(published)
    assert len({one.version for one in signed}) == hours + 1


def publisher_of(
    head: Head, site: Authority, identity: SiteIdentity | Callable[[], SiteIdentity]
) -> Publisher:
    return Publisher(
        database=head.database,
        store=head.catalogue.store,
        identity=identity,
        clock=head.clock,
        trust=lambda: load_trust_directory(site.trust_directory),
        on_published=head.published.append,
    )


def followed(site: Authority) -> FollowedIdentity:
    certificate = site.certificate_path("catalogue")
    return FollowedIdentity(lambda: load(site), (certificate, certificate.with_suffix(".key")))


def test_a_key_that_is_replaced_signs_the_list_anew_and_half_of_a_pair_does_not(
    head: Head, site: Authority, tmp_path: Path, logged: list[Any]
) -> None:
    publisher = publisher_of(head, site, followed(site))
    first = publisher.publish_if_due()
    assert first is not None
    certificate = site.certificate_path("catalogue")
    key = certificate.with_suffix(".key")
    old = (certificate.read_bytes(), key.read_bytes())
    new = site.issue(Role.CATALOGUE, now=now())
    new_key = key.read_bytes()

    key.write_bytes(old[1])  # The certificate was replaced, its key not yet.
    assert publisher.publish_if_due() is None
    assert publisher.publish_if_due() is None
    refusals = [line for line in logged if line["event"] == "catalogue-key-not-replaced"]
    assert len(refusals) == 1
    assert "is not the key of" in refusals[0]["why"]

    key.write_bytes(new_key)
    second = publisher.publish_if_due()
    assert second is not None
    assert open_smime(first.message).signer != new.certificate
    assert open_smime(second.message).signer == new.certificate
    assert publisher.publish_if_due() is None

    # A certificate without the role does not get in either.
    other = site.issue(Role.SERVER, now=now())
    shutil.copy(other.certificate_path, certificate)
    shutil.copy(other.key_path, key)
    assert publisher.publish_if_due() is None
    assert "lacks the role" in logged[-1]["why"]


# -- the key is stolen ----------------------------------------------------------------------------


def node_of(site: Authority, state: Path, clock: Callable[[], datetime]) -> NodeAuthority:
    """A node's side of it: what it believes, as after a start over ``state``."""
    authority = NodeAuthority(
        state,
        node="wn001",
        trust=load_trust_directory(state.parent / "trust-at-installation"),
        max_age_s=72 * 3600,
        clock_skew_s=300,
        clock=clock,
    )
    authority.load()
    return authority


def test_a_stolen_key_is_revoked_and_replaced_and_all_nodes_follow(
    head: Head, site: Authority, tmp_path: Path
) -> None:
    # Every node was installed with the CRL of that day.
    shutil.copytree(site.trust_directory, tmp_path / "trust-at-installation")
    publisher = publisher_of(head, site, followed(site))
    first = publisher.publish(why="test").message
    online = node_of(site, tmp_path / "online", head.clock)
    misled = node_of(site, tmp_path / "misled", head.clock)
    offline = node_of(site, tmp_path / "offline", head.clock)
    for node in (online, misled, offline):
        assert node.offer_site_list(first)
    del offline  # It goes, with what it has on disk.

    stolen = load(site)
    head.clock.ahead += timedelta(minutes=10)

    def forged(version: int) -> bytes:
        """A site list of the thief: that of the site, under a number of its choice."""
        text = open_smime(first).document.decode()
        own = str(online.site_list.version) if online.site_list else ""
        return sign_smime(text.replace(own, str(version)).encode(), stolen.certificate, stolen.key)

    soon = int(head.clock().timestamp())
    assert misled.offer_site_list(forged(soon + 3600))
    with pytest.raises(NumberAhead):
        misled.offer_site_list(forged(soon + 30 * 86400))

    # The site: old certificate into the CRL, a new one in its place; the controller sees it.
    site.revoke(stolen.certificate, now=head.clock())
    site.issue(Role.CATALOGUE, now=now())
    second = publisher.publish_if_due()
    assert second is not None
    crl = site.crl_path.read_bytes()
    # The new list may come before the CRL or after it.
    assert online.offer_crl(crl)
    with pytest.raises((SiteListStale, NotReady)):
        online.require_leasable()  # fail closed between the two
    assert online.offer_site_list(second.message)
    with pytest.raises(TrustRefused):
        misled.offer_site_list(second.message)  # its number is lower than the thief's
    assert misled.offer_crl(crl)
    returning = node_of(site, tmp_path / "offline", head.clock)
    assert returning.offer_site_list(second.message)
    assert returning.offer_crl(crl)

    for node in (online, misled, returning):
        assert node.require_leasable().version == str(second.version)
        for version in (soon + 7200, soon + 30 * 86400):
            with pytest.raises(TrustRefused, match="revoked"):
                node.offer_site_list(forged(version))
        assert node.require_leasable().version == str(second.version)

    # A node that comes back and is told the thief's list first.
    late = node_of(site, tmp_path / "late", head.clock)
    assert late.offer_site_list(forged(soon + 3601))
    late.offer_crl(crl)
    assert late.offer_site_list(second.message)
    assert late.require_leasable().version == str(second.version)
    # And over a restart nothing of the thief's comes back.
    again = node_of(site, tmp_path / "misled", head.clock)
    assert again.require_leasable().version == str(second.version)
    with pytest.raises(TrustRefused, match="revoked"):
        again.offer_site_list(forged(soon + 7200))


def test_the_head_does_not_publish_with_a_key_that_it_knows_to_be_revoked(
    head: Head, site: Authority
) -> None:
    publisher = publisher_of(head, site, followed(site))
    good = publisher.publish(why="test")
    site.revoke(load(site).certificate, now=now())
    with pytest.raises(TrustRefused, match="revoked"):
        publisher.publish(why="test")
    assert publisher.current() == good.message
