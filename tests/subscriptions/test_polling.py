"""What polls bring: images announced, taken, revoked, lapsed; and what a bad poll leaves alone."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from distrib.catalogue.evidence import KEPT
from distrib.errors import Conflict, NotFound, Revoked, TrustRefused
from tests.head.stories import LIST, Endorser, Head, entry, image_bytes
from tests.subscriptions.server import ListServer, head
from tests.subscriptions.stories import Follower, codes, remarks

ONE = "7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f0001"
TWO = "7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f0002"
OTHER_LIST = "0d4b3b8e-54f0-4a53-8a6e-0a4f1a6a2c99"


def one(version: str = "1.0.0", seed: int = 1, **more: Any) -> dict[str, Any]:
    return entry(image_bytes(seed), identifier=ONE, version=version, **more)


def two(version: str = "1.0.0") -> dict[str, Any]:
    return entry(image_bytes(2), identifier=TWO, version=version)


async def test_images_of_a_list_are_announced_and_none_is_taken(follower: Follower) -> None:
    follower.subscribe()
    row = await follower.follows(one(), two(), version="1")
    assert (row.code, row.identifier, row.failures) == ("accepted", LIST, 0)
    assert follower.states() == {"0001@1.0.0": "announced", "0002@1.0.0": "announced"}
    kept = follower.head.catalogue.store.list_file(row.message_sha512 or "")
    assert hashlib.sha512(kept.read_bytes()).hexdigest() == row.message_sha512
    # Announced images are on no site list, and cannot be approved before they came in.
    assert follower.head.site_list().images == ()
    with pytest.raises(Conflict):
        await follower.head.catalogue.approval.approve(ONE, "1.0.0", actor="test")


async def test_what_is_taken_is_expected_from_where_the_list_says(follower: Follower) -> None:
    follower.subscribe()
    await follower.follows(one(), version="1")
    taking = follower.head.catalogue.taking
    assert taking.take(ONE, "1.0.0", actor="ops").state == "expected"
    image = follower.image(ONE)
    assert image.source == "https://images.example.org/worker.raw"
    # Again is no fault; and the list may say another place now.
    taking.take(ONE, "1.0.0", actor="ops")
    await follower.follows(one(**{"hv:uri": "https://mirror.example.org/w"}), version="2")
    assert follower.image(ONE).source == "https://mirror.example.org/w"
    assert follower.states() == {"0001@1.0.0": "expected"}
    with pytest.raises(NotFound):
        taking.take(TWO, "1.0.0", actor="ops")


async def test_new_versions_of_known_images_are_taken_and_others_are_not(
    follower: Follower,
) -> None:
    follower.subscribe(take="known")
    await follower.follows(one(), two(), version="1")
    await follower.approve(ONE, image_bytes(1))
    await follower.follows(one("1.1.0", seed=3), two("1.1.0"), version="2")
    # The older version of what nobody wanted is forgotten; what was approved stays approved.
    assert follower.states() == {
        "0001@1.0.0": "approved",
        "0001@1.1.0": "expected",
        "0002@1.1.0": "announced",
    }
    # An endorser that goes back has nothing taken.
    await follower.follows(one("0.9.0", seed=4), version="3")
    assert follower.states()["0001@0.9.0"] == "announced"


async def test_everything_is_taken_where_that_is_wanted(follower: Follower) -> None:
    follower.subscribe(take="all")
    await follower.follows(one(), version="1")
    await follower.follows(one(), two(), version="2")
    assert set(follower.states().values()) == {"expected"}


async def test_omission_revokes_and_the_site_list_says_so_at_once(follower: Follower) -> None:
    follower.subscribe()
    await follower.follows(one(), two(), version="1")
    await follower.approve(ONE, image_bytes(1))
    assert [image.identifier for image in follower.head.site_list().images] == [ONE]
    before = len(follower.head.published)
    await follower.follows(version="2")
    assert follower.states() == {"0001@1.0.0": "revoked", "0002@1.0.0": "revoked"}
    assert len(follower.head.published) == before + 1
    assert follower.head.site_list().images == ()
    with pytest.raises(Revoked):
        follower.head.catalogue.taking.take(TWO, "1.0.0", actor="ops")
    # On the list again: the site decides anew.
    await follower.follows(one(), version="3")
    assert follower.states()["0001@1.0.0"] == "announced"
    assert follower.head.site_list().images == ()


async def test_a_denial_outlives_what_lists_do(follower: Follower) -> None:
    follower.subscribe(take="all")
    await follower.follows(one(), two(), version="1")
    denial = follower.head.catalogue.denial
    denial.deny(ONE, "1.0.0", reason="bad", actor="ops")
    await follower.follows(two(), version="2")
    assert follower.image(ONE).state == "denied"
    with pytest.raises(Revoked):
        denial.undeny(ONE, "1.0.0", reason="good", actor="ops")
    await follower.follows(one(), two(), version="3")
    assert follower.image(ONE).state == "denied"
    denial.undeny(ONE, "1.0.0", reason="good", actor="ops")
    assert follower.image(ONE).state == "announced"


async def test_lists_that_go_back_or_change_their_meaning_are_refused(
    follower: Follower,
) -> None:
    follower.subscribe()
    await follower.follows(one(), version="1.10")
    older = await follower.follows(two(), version="1.9")
    assert codes(older) == ["version-down"]
    other = await follower.follows(two(), version="1.10")
    assert codes(other) == ["version-same-other-bytes"]
    assert (other.failures, other.reasons["exit"]) == (2, 3)
    assert follower.states() == {"0001@1.0.0": "announced"}


async def test_the_same_bytes_and_not_modified_are_fresh(
    follower: Follower, server: ListServer
) -> None:
    follower.subscribe()
    first = await follower.follows(one(), version="1")
    follower.head.clock.ahead = timedelta(hours=1)
    again = await follower.poll()
    assert server.requests[-1].headers["if-none-match"] == first.etag
    assert (again.code, again.message_sha512) == ("unchanged", first.message_sha512)
    assert again.ok_at is not None
    assert first.ok_at is not None
    assert again.ok_at - first.ok_at > timedelta(minutes=59)
    assert follower.head.actions().count("list-accepted") == 1
    # Without what was kept there is nothing to compare with: it is fetched as a whole.
    kept = follower.head.catalogue.store.list_file(first.message_sha512 or "")
    kept.unlink()
    assert (await follower.poll()).code == "unchanged"
    assert "if-none-match" not in server.requests[-1].headers
    assert kept.exists()


async def test_failed_polls_take_nothing_away(follower: Follower, server: ListServer) -> None:
    follower.subscribe()
    good = await follower.follows(one(), version="1")
    await follower.approve(ONE, image_bytes(1))
    stranger = Endorser(follower.endorser.issued, identifier=OTHER_LIST)
    stories: list[tuple[Callable[[], None], str, list[str]]] = [
        (lambda: server.serve(b"<html>"), "trust-refused", ["message-malformed"]),
        (
            lambda: server.serve(stranger.sign(two(), version="9")),
            "trust-refused",
            ["identifier-mismatch"],
        ),
        (server.answers.clear, "not-found", []),
        (
            lambda: server.answers.update({"/image.list": lambda _: [head(503)]}),
            "unreachable",
            [],
        ),
    ]
    for number, (happens, code, reasons) in enumerate(stories, start=1):
        happens()
        row = await follower.poll()
        assert (row.code, codes(row)[: len(reasons)], row.failures) == (code, reasons, number)
        assert row.ok_at == good.ok_at
        assert follower.states() == {"0001@1.0.0": "approved"}
        assert len(follower.head.site_list().images) == 1
    assert (await follower.follows(one(), two(), version="2")).failures == 0


async def test_what_was_refused_is_kept_for_evidence_within_bounds(follower: Follower) -> None:
    follower.subscribe()
    folder = follower.head.state_dir / "refused" / str(follower.id)
    for number in range(KEPT + 3):
        follower.server.serve(b"no list %d" % number)
        await follower.poll()
        await follower.poll()
    kept = {file.read_bytes() for file in folder.iterdir()}
    assert kept == {b"no list %d" % number for number in range(3, KEPT + 3)}
    # The log has it once, not at every poll: the reasons are the same.
    assert follower.head.actions().count("list-refused") == 1
    assert list((follower.head.state_dir / "lists").iterdir()) == []


async def test_other_bytes_under_a_known_version_are_passed_over_and_told(
    follower: Follower,
) -> None:
    follower.subscribe()
    await follower.follows(one(), version="1")
    row = await follower.follows(one(seed=9), two(), version="2")
    assert (row.code, remarks(row)) == (
        "accepted",
        [(f"{ONE}@1.0.0", "version-same-other-bytes")],
    )
    assert follower.image(ONE).endorsed_sha512 == hashlib.sha512(image_bytes(1)).hexdigest()
    row = await follower.follows(one(), two("not a version"), version="3")
    assert remarks(row) == [(f"{TWO}@not a version", "image-invalid")]


async def test_an_entry_that_would_fill_the_site_list_is_passed_over(follower: Follower) -> None:
    follower.subscribe()
    large = entry(image_bytes(2), identifier=TWO, **{"ad:notes": ["x" * 1000] * 17})
    row = await follower.follows(one(), large, version="1")
    assert remarks(row) == [(f"{TWO}@1.0.0", "image-invalid")]
    assert follower.states() == {"0001@1.0.0": "announced"}


async def test_a_list_of_too_many_images_is_refused(follower: Follower) -> None:
    follower.subscribe()
    many = [entry(b"x", identifier=str(uuid.UUID(int=number))) for number in range(2001)]
    assert codes(await follower.follows(*many, version="1")) == ["too-large"]
    assert follower.states() == {}


async def test_images_lapse_with_their_list_and_come_back_with_a_newer_one(
    follower: Follower,
) -> None:
    follower.subscribe()
    day = timedelta(days=1)
    await follower.follows(one(), two(), version="1", lifetime=day)
    await follower.approve(ONE, image_bytes(1))
    head = follower.head
    head.clock.ahead = 2 * day
    head.catalogue.publisher.publish(why="test")
    assert head.site_list().images == ()
    # The same list once more says that it is expired, and is not fresh.
    row = await follower.poll()
    assert (row.code, codes(row)) == ("trust-refused", ["list-expired"])
    with pytest.raises(TrustRefused):
        head.catalogue.taking.take(TWO, "1.0.0", actor="ops")
    await follower.follows(one(), two(), version="2", now=head.clock())
    assert follower.states() == {"0001@1.0.0": "approved", "0002@1.0.0": "announced"}
    assert [image.identifier for image in head.site_list().images] == [ONE]


async def test_a_uuid_of_another_list_is_refused_with_its_list(
    follower: Follower, server: ListServer, successor: Endorser
) -> None:
    follower.subscribe()
    await follower.follows(one(), version="1")
    rival = Endorser(successor.issued, identifier=OTHER_LIST)
    hijacker = Follower(follower.head, server, rival)
    hijacker.subscribe(url=f"{server.base}/rival", take="all")
    server.serve(rival.sign(one("9.0.0", seed=5), version="1"), "/rival")
    assert codes(await hijacker.poll()) == ["uuid-foreign"]
    assert follower.states() == {"0001@1.0.0": "announced"}


async def test_a_crash_between_keeping_and_committing_is_repeated(
    follower: Follower, pki: Any, tmp_path: Path
) -> None:
    follower.subscribe()
    signed = follower.endorser.sign(one(), version="1")
    file = tmp_path / "image.list"
    file.write_bytes(signed)
    subscription = follower.head.catalogue.subscriptions.add(
        follower.wanted(url=f"file://{file}", ca_file=None), actor="test"
    )
    script = f"""
import asyncio, os, signal
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from distrib.catalogue.store import ImageStore
from distrib.trust.testpki import Authority
from tests.subscriptions.stories import open_site

keep = ImageStore.keep_list
def keep_and_die(self, sha512, message):
    keep(self, sha512, message)
    os.kill(os.getpid(), signal.SIGKILL)
ImageStore.keep_list = keep_and_die
head = open_site(
    Path({str(follower.head.state_dir)!r}), Authority.load({str(pki.site.directory)!r}),
    Path({str(pki.experiment.trust_directory)!r}), Ed25519PrivateKey.generate())
asyncio.run(head.catalogue.schedule.poll({subscription.id}, actor="test"))
"""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script],
        check=False,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": "."},
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = follower.head.catalogue.store.list_file(hashlib.sha512(signed).hexdigest())
    assert kept.read_bytes() == signed
    assert follower.states() == {}
    follower.row = subscription
    row = await follower.poll()
    assert (row.code, follower.states()) == ("accepted", {"0001@1.0.0": "announced"})


def test_a_list_that_is_followed_may_also_be_handed_in(follower: Follower, head: Head) -> None:
    """The endorser of the subscription is one that the site knows for that list."""
    follower.subscribe(identifier=LIST)
    from distrib.catalogue.intake import ImageChoice

    row = head.catalogue.intake.announce(
        follower.endorser.sign(one(), two(), version="1"),
        ImageChoice(identifier=ONE),
        actor="ops",
    )
    assert (row.state, row.source) == ("expected", "")
    assert follower.states() == {"0001@1.0.0": "expected", "0002@1.0.0": "announced"}
