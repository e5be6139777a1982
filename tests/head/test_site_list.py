"""The site list: signed anew in time and at each change, and never an older version."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from distrib.catalogue.identity import SiteIdentity
from distrib.catalogue.publisher import Publisher
from distrib.errors import ConfigInvalid, TrustRefused
from distrib.trust.directory import load_trust_directory
from distrib.trust.envelope import key_id
from distrib.trust.testpki import Demo
from tests.head.stories import Head


def test_it_is_signed_anew_when_old_and_when_changed_and_not_otherwise(head: Head) -> None:
    publisher = head.catalogue.publisher
    assert publisher.current() is None
    first = publisher.publish_if_due()
    assert first is not None
    assert publisher.publish_if_due() is None
    head.clock.ahead = timedelta(minutes=59)
    assert publisher.publish_if_due() is None
    head.clock.ahead = timedelta(minutes=61)
    second = publisher.publish_if_due()
    assert second is not None
    assert second.version > first.version
    assert head.published == [first.message, second.message]
    kept = sorted(int(file.stem) for file in (head.state_dir / "site-lists").iterdir())
    assert kept == [first.version, second.version]


def test_another_key_for_orders_is_told_at_once(head: Head, pki: Demo) -> None:
    head.catalogue.publisher.publish(why="test")
    key = Ed25519PrivateKey.generate()
    rotated = Publisher(
        database=head.database,
        store=head.catalogue.store,
        identity=identity_of(pki, controller_keys=(key.public_key(),)),
        clock=head.clock,
    )
    assert rotated.publish_if_due() is not None
    assert list(head.site_list().keys()) == [key_id(key.public_key())]
    assert rotated.publish_if_due() is None


def test_its_version_rises_within_one_second_too(head: Head) -> None:
    versions = [head.catalogue.publisher.publish(why="test").version for _ in range(3)]
    assert versions[0] < versions[1] < versions[2]
    assert head.site_list().version == str(versions[2])


@pytest.mark.sqlite_file
def test_its_version_never_goes_down_when_an_old_database_is_restored(
    opened: Callable[..., Head], head: Head
) -> None:
    head.catalogue.publisher.publish(why="test")
    head.database.close()
    backup = head.state_dir.parent / "backup"
    shutil.copytree(head.state_dir, backup)
    again = opened()
    last = [again.catalogue.publisher.publish(why="test").version for _ in range(5)][-1]
    again.database.close()

    # The whole state directory is lost; only the clock knows that time has passed.
    restored = opened("backup")
    restored.clock.ahead = timedelta(minutes=10)
    assert restored.catalogue.publisher.publish(why="test").version > last


@pytest.mark.sqlite_file
def test_its_version_never_goes_down_though_the_clock_does(
    opened: Callable[..., Head], head: Head
) -> None:
    head.database.close()
    old = (head.state_dir / "distrib.db").read_bytes()
    again = opened()
    last = again.catalogue.publisher.publish(why="test").version
    again.database.close()

    # Only the database is restored: the lists that were signed are still there.
    (head.state_dir / "distrib.db").write_bytes(old)
    for leftover in ("distrib.db-wal", "distrib.db-shm"):
        (head.state_dir / leftover).unlink(missing_ok=True)
    restored = opened()
    restored.clock.ahead = -timedelta(minutes=2)
    assert restored.catalogue.publisher.publish(why="test").version == last + 1


def test_a_slow_thread_does_not_hand_an_older_list_on_last(head: Head, pki: Demo) -> None:
    handed: list[bytes] = []
    others: list[threading.Thread] = []

    def hand_on(message: bytes) -> None:
        if not others:
            others.append(threading.Thread(target=publisher.publish, kwargs={"why": "deny"}))
            others[0].start()
            # As long as another thread could take to overtake this one.
            others[0].join(0.5)
        handed.append(message)

    publisher = Publisher(
        database=head.database,
        store=head.catalogue.store,
        identity=identity_of(pki),
        clock=head.clock,
        on_published=hand_on,
    )
    publisher.publish(why="approval")
    others[0].join()
    assert len(handed) == 2
    assert handed[-1] == publisher.current()


def test_a_list_that_nodes_would_refuse_does_not_leave_the_head(head: Head, pki: Demo) -> None:
    head.catalogue.publisher.publish(why="test")
    good = head.catalogue.publisher.current()
    head.clock.ahead = timedelta(days=400)
    with pytest.raises(TrustRefused, match="certificate-expired"):
        head.catalogue.publisher.publish(why="test")
    assert head.catalogue.publisher.current() == good
    head.clock.ahead = timedelta()
    stranger = Publisher(
        database=head.database,
        store=head.catalogue.store,
        identity=identity_of(pki),
        clock=head.clock,
        trust=lambda: load_trust_directory(pki.experiment.trust_directory),
    )
    with pytest.raises(TrustRefused, match="chain-untrusted"):
        stranger.publish(why="test")
    assert "site-list-published" in head.actions()


def test_the_certificate_must_be_a_catalogues(pki: Demo, tmp_path: Path) -> None:
    certs = pki.site.directory / "certs"
    with pytest.raises(ConfigInvalid, match="lacks the role catalogue"):
        identity_of(pki, certificate=certs / "server.pem", key=certs / "server.key")
    with pytest.raises(ConfigInvalid, match="is not the key of"):
        identity_of(pki, key=certs / "server.key")
    (tmp_path / "broken.key").write_text("no key")
    with pytest.raises(ConfigInvalid, match=r"broken\.key"):
        identity_of(pki, key=tmp_path / "broken.key")
    assert replace(identity_of(pki), email="x@example.org").email


def identity_of(pki: Demo, **other: Any) -> SiteIdentity:
    """The site's identity, with some of it another."""
    certs = pki.site.directory / "certs"
    return SiteIdentity.load(
        **{
            "site": "Example Site",
            "identifier": "1f8b6e0c-6b1e-4c6a-9d6e-2f0f4c1d9a10",
            "url": "https://head.example.org/api/v1/site-list",
            "certificate": certs / "catalogue.pem",
            "key": certs / "catalogue.key",
        }
        | other
    )
