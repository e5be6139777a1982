"""The site's no: at once, in any state, and taken back; also by two who decide at the same time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from distrib.catalogue.intake import ImageChoice
from distrib.db.counters import ROLLOUT_NUMBER, rise, value_of
from distrib.db.models import Image, ImageState
from distrib.errors import Conflict, DistribError, ExitStatus, Revoked
from tests.head.stories import WORKER, Endorser, Head, entry, image_bytes

OLD, NEW = image_bytes(1), image_bytes(2)


async def chunks(content: bytes) -> AsyncIterator[bytes]:
    yield content


def bring(head: Head, signed: bytes, version: str, *, until: ImageState) -> None:
    """Announce, receive, approve: up to the state ``until``."""
    catalogue = head.catalogue
    content = OLD if version == "1.0.0" else NEW
    catalogue.intake.announce(signed, ImageChoice(version=version), actor="test")
    if until == ImageState.EXPECTED:
        return
    asyncio.run(catalogue.quarantine.receive(WORKER, version, chunks(content), actor="test"))
    if until != ImageState.QUARANTINED:
        asyncio.run(catalogue.approval.approve(WORKER, version, aliases=["ccin2p3"], actor="test"))


def both_versions(endorser: Endorser) -> bytes:
    """A list with the old version and the new one; a site may take in both."""
    return endorser.sign(entry(NEW, version="2.0.0"), version="2.0.0")


def states(head: Head) -> dict[str, str]:
    with head.database.reading() as session:
        return {row.version: row.state for row in session.query(Image)}


def listed(head: Head) -> dict[str, str]:
    """Versions on the site list that is published now."""
    head.catalogue.publisher.publish_if_due()
    return {image.version: image.state for image in head.site_list().images}


def two_approved(head: Head, endorser: Endorser) -> None:
    """1.0.0, and after it 2.0.0."""
    bring(head, endorser.sign(entry(OLD)), "1.0.0", until=ImageState.APPROVED)
    bring(head, both_versions(endorser), "2.0.0", until=ImageState.APPROVED)


@pytest.mark.parametrize(
    "state", [ImageState.EXPECTED, ImageState.QUARANTINED, ImageState.APPROVED]
)
def test_a_denial_in_any_state_is_taken_back_to_that_state(
    head: Head, endorser: Endorser, state: ImageState
) -> None:
    bring(head, endorser.sign(entry(OLD)), "1.0.0", until=state)
    before = listed(head)
    head.catalogue.denial.deny(WORKER, "1.0.0", reason="CVE", actor="alice")
    assert states(head) == {"1.0.0": "denied"}
    assert listed(head) == {}
    with pytest.raises(Revoked, match="denied"):
        asyncio.run(head.catalogue.approval.approve(WORKER, "1.0.0", actor="bob"))

    row = head.catalogue.denial.undeny(WORKER, "1.0.0", reason="no CVE", actor="bob")
    assert (row.state, row.reason, row.before_denial) == (state, "no CVE", None)
    assert listed(head) == before
    assert [one for one in head.actions() if "denied" in one] == ["image-denied", "image-undenied"]
    with pytest.raises(Conflict, match="not denied"):
        head.catalogue.denial.undeny(WORKER, "1.0.0", reason="again", actor="bob")


def test_what_nobody_asked_for_can_be_denied_before_it_is(head: Head, endorser: Endorser) -> None:
    signed = endorser.sign(entry(OLD))
    bring(head, signed, "1.0.0", until=ImageState.EXPECTED)
    with head.database.transaction() as session:
        session.get_one(Image, (WORKER, "1.0.0")).state = ImageState.ANNOUNCED
    head.catalogue.denial.deny(WORKER, "1.0.0", reason="never here", actor="alice")
    with pytest.raises(Revoked, match="never here"):
        bring(head, signed, "1.0.0", until=ImageState.EXPECTED)
    undenied = head.catalogue.denial.undeny(WORKER, "1.0.0", reason="well", actor="alice")
    assert undenied.state == ImageState.ANNOUNCED


def test_a_version_that_was_overtaken_while_denied_comes_back_as_superseded(
    head: Head, endorser: Endorser
) -> None:
    bring(head, endorser.sign(entry(OLD)), "1.0.0", until=ImageState.APPROVED)
    head.catalogue.denial.deny(WORKER, "1.0.0", reason="CVE", actor="alice")
    bring(head, both_versions(endorser), "2.0.0", until=ImageState.APPROVED)
    row = head.catalogue.denial.undeny(WORKER, "1.0.0", reason="no CVE", actor="alice")
    assert row.until is not None
    assert row.until - row.since == timedelta(days=30)
    assert listed(head) == {"1.0.0": "superseded", "2.0.0": "approved"}
    [named] = head.site_list().find("ccin2p3@2.0.0")
    assert named.aliases == ("ccin2p3",)


def test_the_newest_that_comes_back_takes_its_place_again(head: Head, endorser: Endorser) -> None:
    two_approved(head, endorser)
    grace_ends = {row.version: row.until for row in rows(head)}["1.0.0"]
    head.catalogue.denial.deny(WORKER, "1.0.0", reason="old", actor="alice")
    head.catalogue.denial.deny(WORKER, "2.0.0", reason="broken", actor="alice")
    assert listed(head) == {}
    head.catalogue.denial.undeny(WORKER, "1.0.0", reason="wanted", actor="alice")
    # It was superseded, and its grace has not grown.
    assert {row.version: row.until for row in rows(head)}["1.0.0"] == grace_ends
    head.catalogue.denial.undeny(WORKER, "2.0.0", reason="mended", actor="alice")
    assert listed(head) == {"1.0.0": "superseded", "2.0.0": "approved"}


def rows(head: Head) -> list[Image]:
    with head.database.reading() as session:
        return list(session.query(Image))


def test_what_the_endorser_withdrew_meanwhile_stays_denied(head: Head, endorser: Endorser) -> None:
    bring(head, endorser.sign(entry(OLD)), "1.0.0", until=ImageState.APPROVED)
    head.catalogue.denial.deny(WORKER, "1.0.0", reason="CVE", actor="alice")
    other = entry(NEW, identifier="11111111-0f0e-4f43-9a11-3a9f5e0f6c11", version="2.0.0")
    head.catalogue.intake.announce(
        endorser.sign(other, version="2.0.0"), ImageChoice(version="2.0.0"), actor="test"
    )
    with pytest.raises(Revoked, match="no longer names it") as refusal:
        head.catalogue.denial.undeny(WORKER, "1.0.0", reason="no CVE", actor="alice")
    assert refusal.value.exit_status == ExitStatus.TRUST_REFUSED
    assert states(head)["1.0.0"] == "denied"


def test_a_file_that_is_gone_is_expected_again(head: Head, endorser: Endorser) -> None:
    bring(head, endorser.sign(entry(OLD)), "1.0.0", until=ImageState.APPROVED)
    [row] = rows(head)
    head.catalogue.denial.deny(WORKER, "1.0.0", reason="CVE", actor="alice")
    assert row.infohash is not None
    head.catalogue.store.image_file(row.infohash).unlink()
    undenied = head.catalogue.denial.undeny(WORKER, "1.0.0", reason="no CVE", actor="alice")
    assert undenied.state == ImageState.EXPECTED
    assert listed(head) == {}


# -- two at once, each with connections of its own ------------------------------------------------


def at_once(*steps: Callable[[], object]) -> list[object]:
    """What each gave, or the error that it was refused with."""
    barrier = threading.Barrier(len(steps))

    def run(step: Callable[[], object]) -> object:
        barrier.wait(10)
        try:
            return step()
        except DistribError as error:
            return error

    with ThreadPoolExecutor(len(steps)) as pool:
        return list(pool.map(run, steps))


def test_two_versions_approved_at_once_leave_one_that_is_approved(
    opened: Callable[..., Head], head: Head, endorser: Endorser
) -> None:
    bring(head, endorser.sign(entry(OLD)), "1.0.0", until=ImageState.QUARANTINED)
    bring(head, both_versions(endorser), "2.0.0", until=ImageState.QUARANTINED)
    other = opened()

    def approve(one: Head, version: str) -> object:
        return asyncio.run(one.catalogue.approval.approve(WORKER, version, actor=version))

    older, newer = at_once(lambda: approve(head, "1.0.0"), lambda: approve(other, "2.0.0"))
    assert isinstance(newer, Image)
    if isinstance(older, Conflict):
        assert "older than 2.0.0" in older.message
        assert states(head) == {"1.0.0": "quarantined", "2.0.0": "approved"}
    else:
        assert states(head) == {"1.0.0": "superseded", "2.0.0": "approved"}


def test_a_denial_beside_an_approval_wins(
    opened: Callable[..., Head], head: Head, endorser: Endorser
) -> None:
    bring(head, endorser.sign(entry(OLD)), "1.0.0", until=ImageState.QUARANTINED)
    other = opened()
    approved, denied = at_once(
        lambda: asyncio.run(head.catalogue.approval.approve(WORKER, "1.0.0", actor="alice")),
        lambda: other.catalogue.denial.deny(WORKER, "1.0.0", reason="CVE", actor="bob"),
    )
    assert isinstance(denied, Image)
    assert isinstance(approved, Image | Revoked)
    assert states(head) == {"1.0.0": "denied"}
    assert listed(head) == {}


def test_denials_and_approvals_that_cross_never_lock_each_other_out(
    opened: Callable[..., Head], head: Head, endorser: Endorser
) -> None:
    two_approved(head, endorser)
    other = opened()

    def flip(one: Head, version: str) -> None:
        for _ in range(5):
            one.catalogue.denial.deny(WORKER, version, reason="no", actor=version)
            one.catalogue.denial.undeny(WORKER, version, reason="yes", actor=version)

    assert at_once(lambda: flip(head, "1.0.0"), lambda: flip(other, "2.0.0")) == [None, None]
    assert listed(head) == {"1.0.0": "superseded", "2.0.0": "approved"}


def test_a_counter_that_many_raise_misses_none(opened: Callable[..., Head], head: Head) -> None:
    other = opened()

    def raise_it(one: Head) -> list[int]:
        values = []
        for _ in range(10):
            with one.database.transaction() as session:
                values.append(rise(session, ROLLOUT_NUMBER))
        return values

    given = at_once(*[lambda one=one: raise_it(one) for one in (head, other, head, other)])
    values = [value for mine in given if isinstance(mine, list) for value in mine]
    assert sorted(values) == list(range(1, 41))
    with head.database.reading() as session:
        assert value_of(session, ROLLOUT_NUMBER) == 40


def test_two_publishers_never_give_one_version_twice(
    opened: Callable[..., Head], head: Head
) -> None:
    other = opened()
    published = at_once(
        *[
            lambda one=one: [one.catalogue.publisher.publish(why="test").version for _ in range(4)]
            for one in (head, other)
        ]
    )
    versions = [version for mine in published if isinstance(mine, list) for version in mine]
    assert len(set(versions)) == 8
