"""Taking images in, over the API: what is endorsed comes in, nothing else does."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx

from distrib.db.models import Image
from distrib.swarm.torrent import info_of, parse_info
from tests.head.stories import LIST, WORKER, Endorser, Head, entry, image_bytes, serve

REF = f"{WORKER}@1.0.0"


def announce(http: httpx.Client, signed: bytes, content: bytes, **choice: Any) -> httpx.Response:
    body = {"list": base64.b64encode(signed).decode(), "size_bytes": len(content)} | choice
    return http.post("/images", json=body)


def take_in(
    http: httpx.Client, signed: bytes, content: bytes, ref: str = REF, **choice: Any
) -> Any:
    """All three steps; the image as it is approved."""
    answer = announce(http, signed, content, **choice)
    assert answer.status_code == 201, answer.text
    answer = http.put(f"/images/{ref}/content", content=content)
    assert answer.status_code == 200, answer.text
    answer = http.post(f"/images/{ref}/approve", json={"aliases": ["ccin2p3"]})
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The documented error body."""
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == code
    assert {"code", "exit", "message", "hint", "ids"} <= set(error)
    assert "\n" not in error["message"]
    return error


def test_an_endorsed_image_ends_up_on_the_signed_site_list(
    served: Head, endorser: Endorser
) -> None:
    content = image_bytes()
    signed = endorser.sign(entry(content))
    with served.http() as http:
        assert announce(http, signed, content).json()["state"] == "expected"
        # Asking again changes nothing.
        assert announce(http, signed, content).json()["state"] == "expected"
        assert http.put(f"/images/{REF}/content", content=content).json()["state"] == "quarantined"
        assert not list((served.state_dir / "images").iterdir())
        approved = http.post(f"/images/{REF}/approve", json={"aliases": ["ccin2p3"]}).json()
        message = http.get("/site-list", headers={"Authorization": ""}).content
    assert approved["state"] == "approved"
    assert approved["sha512"] == hashlib.sha512(content).hexdigest()

    folder = served.state_dir / "images" / approved["infohash"]
    assert (folder / "image.raw").read_bytes() == content
    assert (folder / "image.raw").stat().st_mode & 0o222 == 0
    assert (
        parse_info(info_of((folder / "image.torrent").read_bytes())).infohash
        == approved["infohash"]
    )
    assert not list((served.state_dir / "quarantine").iterdir())

    site_list = served.site_list()
    [published] = site_list.find("ccin2p3")
    assert (published.infohash, published.state) == (approved["infohash"], "approved")
    assert published.origin.endorser_dn == endorser.dn
    assert site_list.controller_keys
    assert served.published[-1] == message
    kept = served.state_dir / "lists" / f"{hashlib.sha512(signed).hexdigest()}.smime"
    assert kept.read_bytes() == signed
    assert served.actions()[-7:] == [
        "list-accepted",
        "image-expected",
        "site-list-published",
        "image-received",
        "image-checked",
        "image-approved",
        "site-list-published",
    ]


def test_a_file_of_another_size_is_refused_before_it_is_sent(
    served: Head, endorser: Endorser
) -> None:
    content = image_bytes()
    with served.http() as http:
        signed = endorser.sign(entry(content))
        error = refused(announce(http, signed, content[:-1]), 422, "digest-mismatch")
        assert error["exit"] == 3
        assert "299999 bytes" in error["message"]


def test_a_stream_is_refused_at_the_first_byte_too_many(served: Head, endorser: Endorser) -> None:
    content = image_bytes()
    with served.http() as http:
        announce(http, endorser.sign(entry(content)), content)
        answer = http.put(f"/images/{REF}/content", content=iter([content, b"x", content]))
        assert "more than the 300000 bytes" in refused(answer, 422, "digest-mismatch")["message"]
        assert http.get(f"/images/{REF}").json()["state"] == "expected"
    assert not list((served.state_dir / "quarantine").iterdir())


def test_a_short_stream_is_refused_and_deleted(served: Head, endorser: Endorser) -> None:
    content = image_bytes()
    with served.http() as http:
        announce(http, endorser.sign(entry(content)), content)
        answer = http.put(f"/images/{REF}/content", content=iter([content[:1000]]))
        refused(answer, 422, "digest-mismatch")
    assert not list((served.state_dir / "quarantine").iterdir())
    assert "file-refused" in served.actions()


def test_other_bytes_of_the_right_size_are_refused_and_deleted(
    served: Head, endorser: Endorser
) -> None:
    content = image_bytes()
    forged = content[:-1] + bytes([content[-1] ^ 1])
    with served.http() as http:
        announce(http, endorser.sign(entry(content)), content)
        answer = http.put(f"/images/{REF}/content", content=forged)
        assert "SHA-512" in refused(answer, 422, "digest-mismatch")["message"]
        refused(http.post(f"/images/{REF}/approve", json={}), 409, "conflict")
        # The right file may come after.
        assert http.put(f"/images/{REF}/content", content=content).status_code == 200
    assert "file-refused" in served.actions()


def test_a_list_of_a_stranger_is_refused_with_its_code(served: Head, stranger: Endorser) -> None:
    content = image_bytes()
    with served.http() as http:
        answer = announce(http, stranger.sign(entry(content)), content)
        error = refused(answer, 422, "trust-refused")
        assert "endorser-not-authorised" in {reason["code"] for reason in error["reasons"]}
        assert http.get("/images").json() == {"images": []}
    assert not list((served.state_dir / "lists").iterdir())
    assert "list-refused" in served.actions()


def test_an_endorser_of_one_list_may_not_sign_another(served: Head, endorser: Endorser) -> None:
    content = image_bytes()
    other = Endorser(endorser.issued, identifier=LIST.replace("0d4b", "0d4c"))
    with served.http() as http:
        error = refused(announce(http, other.sign(entry(content)), content), 422, "trust-refused")
    assert {reason["code"] for reason in error["reasons"]} == {"endorser-not-authorised"}


def test_lists_never_go_back_and_a_version_has_one_meaning(
    served: Head, endorser: Endorser
) -> None:
    content = image_bytes()
    with served.http() as http:
        assert announce(http, endorser.sign(entry(content), version="1.1.0"), content).is_success
        older = announce(http, endorser.sign(entry(content), version="1.0.0"), content)
        assert [r["code"] for r in refused(older, 422, "trust-refused")["reasons"]] == [
            "version-down"
        ]
        other = endorser.sign(entry(content, title="changed"), version="1.1.0")
        error = refused(announce(http, other, content), 422, "trust-refused")
        assert [r["code"] for r in error["reasons"]] == ["version-same-other-bytes"]


def test_other_bytes_under_a_known_image_version_are_a_conflict(
    served: Head, endorser: Endorser
) -> None:
    one, two = image_bytes(1), image_bytes(2)
    with served.http() as http:
        assert announce(http, endorser.sign(entry(one), version="1"), one).is_success
        answer = announce(http, endorser.sign(entry(two), version="2"), two)
        refused(answer, 409, "conflict")


def test_a_newer_version_supersedes_and_an_older_one_does_not_come_back(
    served: Head, endorser: Endorser
) -> None:
    one, two = image_bytes(1), image_bytes(2)
    with served.http() as http:
        take_in(http, endorser.sign(entry(one), version="1"), one)
        second = entry(two, version="2.0.0")
        take_in(http, endorser.sign(second, version="2"), two, ref=f"{WORKER}@2.0.0")
        old = http.get(f"/images/{REF}").json()
        assert old["state"] == "superseded"
        assert old["versions"] == [
            {"version": "2.0.0", "state": "approved"},
            {"version": "1.0.0", "state": "superseded"},
        ]
        refused(http.post(f"/images/{REF}/approve", json={}), 409, "conflict")
    states = {image.version: (image.state, image.aliases) for image in served.site_list().images}
    assert states == {"1.0.0": ("superseded", ()), "2.0.0": ("approved", ("ccin2p3",))}
    served.clock.ahead = timedelta(days=20)
    served.catalogue.publisher.publish(why="test")
    assert len(served.site_list().images) == 2
    served.clock.ahead = timedelta(days=30, minutes=1)


def test_omission_from_a_newer_list_revokes(served: Head, endorser: Endorser) -> None:
    content, other = image_bytes(1), image_bytes(2)
    kept = entry(other, identifier=WORKER.replace("7cb7", "7cb8"), title="other")
    with served.http() as http:
        take_in(http, endorser.sign(entry(content), kept, version="1"), content, title="worker")
        assert len(served.site_list().images) == 1
        assert announce(http, endorser.sign(kept, version="2"), other).is_success
        assert http.get(f"/images/{REF}").json()["state"] == "revoked"
        refused(http.post(f"/images/{REF}/approve", json={}), 422, "revoked")
    assert served.site_list().images == ()
    assert "image-revoked" in served.actions()


def test_deny_takes_an_image_off_at_once_and_for_good(served: Head, endorser: Endorser) -> None:
    content = image_bytes()
    signed = endorser.sign(entry(content))
    with served.http() as http:
        take_in(http, signed, content)
        refused(http.post(f"/images/{REF}/deny", json={"reason": ""}), 422, "usage")
        denied = http.post("/images/ccin2p3/deny", json={"reason": "a hole in it"}).json()
        assert (denied["state"], denied["reason"]) == ("denied", "a hole in it")
        assert served.site_list().images == ()
        refused(http.post(f"/images/{REF}/approve", json={}), 422, "revoked")
        refused(announce(http, signed, content), 422, "revoked")


def test_the_aliases_go_back_with_the_newest_version_that_is_listed(
    served: Head, endorser: Endorser
) -> None:
    one, two = image_bytes(1), image_bytes(2)
    with served.http() as http:
        take_in(http, endorser.sign(entry(one), version="1"), one)
        newer = endorser.sign(entry(two, version="2.0.0"), version="2")
        take_in(http, newer, two, ref=f"{WORKER}@2.0.0")
        assert http.post(f"/images/{WORKER}@2.0.0/deny", json={"reason": "a hole"}).is_success
    [image] = served.site_list().find("ccin2p3")
    assert (image.version, image.state, image.aliases) == ("1.0.0", "superseded", ("ccin2p3",))


def test_the_same_bytes_are_one_image_version(served: Head, endorser: Endorser) -> None:
    content = image_bytes()
    uuid = WORKER.replace("7cb7", "7cb8")
    signed = endorser.sign(entry(content), entry(content, identifier=uuid, title="twin"))
    with served.http() as http:
        take_in(http, signed, content, title="worker")
        assert announce(http, signed, content, title="twin").is_success
        assert http.put(f"/images/{uuid}@1.0.0/content", content=content).is_success
        error = refused(http.post(f"/images/{uuid}/approve", json={}), 409, "conflict")
        assert f"{uuid}@1.0.0 has the same bytes as {REF}" in error["message"]
        assert [image.ref for image in served.site_list().images] == [REF]
        assert http.post(f"/images/{REF}/deny", json={"reason": "the twin it is"}).is_success
        assert http.post(f"/images/{uuid}/approve", json={}).is_success
    assert [image.ref for image in served.site_list().images] == [f"{uuid}@1.0.0"]


def test_a_format_that_nobody_can_read_is_refused(served: Head, endorser: Endorser) -> None:
    broken = b"QFI\xfb" + image_bytes()
    with served.http() as http:
        stated = endorser.sign(entry(broken, **{"hv:format": "floppy"}), version="1")
        error = refused(announce(http, stated, broken), 422, "image-invalid")
        assert "'floppy'" in error["message"]
        unstated = endorser.sign(entry(broken), version="2")
        announce(http, unstated, broken)
        answer = http.put(f"/images/{REF}/content", content=broken)
        assert "cannot be taken in: qcow2" in refused(answer, 422, "image-invalid")["message"]
        assert http.get(f"/images/{REF}").json()["state"] == "expected"
    assert not list((served.state_dir / "quarantine").iterdir())


def test_bytes_that_change_in_quarantine_are_not_approved(served: Head, endorser: Endorser) -> None:
    content = image_bytes()
    with served.http() as http:
        announce(http, endorser.sign(entry(content)), content)
        http.put(f"/images/{REF}/content", content=content)
        file = served.state_dir / "quarantine" / REF / "image.raw"
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        answer = http.post(f"/images/{REF}/approve", json={})
        assert "changed in quarantine" in refused(answer, 422, "digest-mismatch")["message"]


def test_a_choice_must_fit_exactly_one_image(served: Head, endorser: Endorser) -> None:
    one, two = image_bytes(1), image_bytes(2)
    other = entry(two, identifier=WORKER.replace("7cb7", "7cb8"), title="other", version="3")
    signed = endorser.sign(entry(one), other)
    with served.http() as http:
        assert "'other' 3" in refused(announce(http, signed, two), 422, "usage")["hint"]
        refused(announce(http, signed, two, title="none"), 404, "not-found")
        assert announce(http, signed, two, title="other").json()["title"] == "other"
        digest = hashlib.sha512(one).hexdigest()
        assert announce(http, signed, one, sha512=digest).json()["image"] == REF


def test_a_version_that_cannot_travel_is_refused(served: Head, endorser: Endorser) -> None:
    content = image_bytes()
    with served.http() as http:
        bad = endorser.sign(entry(content, version="1.0 beta"), version="1")
        refused(announce(http, bad, content), 422, "image-invalid")
        # A slash may stand in a version, and must not lead out of the quarantine.
        slash = endorser.sign(entry(content, version="1/../../x"), version="2")
        take_in(http, slash, content, ref=f"{WORKER}@1%2F..%2F..%2Fx")
    assert [image.version for image in served.site_list().images] == ["1/../../x"]


def test_an_alias_means_one_image(served: Head, endorser: Endorser) -> None:
    one, two = image_bytes(1), image_bytes(2)
    uuid = WORKER.replace("7cb7", "7cb8")
    signed = endorser.sign(entry(one), entry(two, identifier=uuid, title="other"))
    with served.http() as http:
        take_in(http, signed, one, title="worker")
        announce(http, signed, two, title="other")
        http.put(f"/images/{uuid}@1.0.0/content", content=two)
        taken = http.post(f"/images/{uuid}/approve", json={"aliases": ["ccin2p3"]})
        refused(taken, 409, "conflict")
        assert http.post(f"/images/{uuid}/approve", json={}).is_success
        refused(http.put("/aliases/no good", json={"identifier": uuid}), 422, "usage")
        refused(http.put("/aliases/x", json={"identifier": "unknown"}), 404, "not-found")
        refused(http.get("/images/unknown"), 404, "not-found")
        moved = http.put("/aliases/ccin2p3", json={"identifier": uuid})
        assert moved.json() == {"alias": "ccin2p3", "identifier": uuid}
    [image] = served.site_list().find("ccin2p3")
    assert image.identifier == uuid


def test_a_restart_keeps_everything(
    opened: Callable[..., Head], head: Head, endorser: Endorser
) -> None:
    content = image_bytes()
    with serve(head), head.http() as http:
        approved = take_in(http, endorser.sign(entry(content)), content)
        secret = head.token()
    before, version = head.actions(), head.site_list().version
    head.database.close()

    again = opened()
    with serve(again), again.http(secret) as http:
        shown = http.get("/images/ccin2p3").json()
        shown.pop("versions")
        assert shown == approved
        assert len(http.get("/endorsers").json()["endorsers"]) == 1
    assert again.actions() == before
    assert again.catalogue.publisher.publish_if_due() is None
    assert again.site_list().version == version


def test_what_a_crash_left_in_quarantine_is_put_in_order(
    opened: Callable[..., Head], head: Head, endorser: Endorser
) -> None:
    content = image_bytes()
    with serve(head), head.http() as http:
        announce(http, endorser.sign(entry(content)), content)
        http.put(f"/images/{REF}/content", content=content)
    folder = head.state_dir / "quarantine" / REF
    (folder / "image.raw").rename(folder / "image.part")
    head.database.close()

    again = opened()
    assert not folder.exists()
    with again.database.reading() as session:
        assert session.get_one(Image, (WORKER, "1.0.0")).state == "expected"


def test_an_approval_that_was_cut_off_can_be_repeated(
    opened: Callable[..., Head], head: Head, endorser: Endorser
) -> None:
    content = image_bytes()
    with serve(head), head.http() as http:
        approved = take_in(http, endorser.sign(entry(content)), content)
    # As after a crash between the move of the files and the last step.
    with head.database.transaction() as session:
        session.get_one(Image, (WORKER, "1.0.0")).state = "quarantined"
    head.database.close()

    again = opened()
    with serve(again), again.http() as http:
        repeated = http.post(f"/images/{REF}/approve", json={}).json()
    assert (repeated["state"], repeated["infohash"]) == ("approved", approved["infohash"])


def test_the_disk_is_full(served: Head, endorser: Endorser, monkeypatch: Any) -> None:
    content = image_bytes()
    with served.http() as http:
        announce(http, endorser.sign(entry(content)), content)
        monkeypatch.setattr("shutil.disk_usage", lambda _path: type("Usage", (), {"free": 1000})())
        error = refused(http.put(f"/images/{REF}/content", content=content), 507, "no-space")
    assert error["exit"] == 5
    assert not list(Path(served.state_dir / "quarantine").iterdir())
