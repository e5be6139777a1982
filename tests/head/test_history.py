"""What became of an image can be told afterwards: who, when, why, by which list."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from distrib.api.services import Document
from distrib.catalogue.intake import ImageChoice
from distrib.db.models import Node, Rollout
from distrib.trust.signature import open_smime
from distrib.trust.sitelist import parse_site_list
from tests.head.stories import WORKER, Endorser, Head, entry, serve
from tests.head.test_commands import run
from tests.head.test_denial import NEW, OLD, chunks

__all__ = ["run"]

REF = f"{WORKER}@1.0.0"


def whole_life(head: Head, endorser: Endorser) -> list[bytes]:
    """1.0.0 is taken in, checked, approved, rolled out, denied and undenied, superseded by 2.0.0;
    then the endorser withdraws both. The signed lists, in order."""
    catalogue = head.catalogue
    lists = [
        endorser.sign(entry(OLD)),
        endorser.sign(entry(NEW, version="2.0.0"), version="2.0.0"),
        endorser.sign(
            entry(b"other", identifier="11111111-0f0e-4f43-9a11-3a9f5e0f6c11"), version="3.0.0"
        ),
    ]

    def take(signed: bytes, content: bytes, version: str) -> None:
        head.clock.ahead += timedelta(seconds=5)
        catalogue.intake.announce(signed, ImageChoice(version=version), actor="alice")
        asyncio.run(catalogue.quarantine.receive(WORKER, version, chunks(content), actor="alice"))
        approved = catalogue.approval.approve(
            WORKER, version, aliases=["ccin2p3"], reason="tested", actor="bob"
        )
        asyncio.run(approved)
        catalogue.publisher.publish_if_due()

    take(lists[0], OLD, "1.0.0")
    with head.database.transaction() as session:
        session.add(
            Rollout(
                id="r-1",
                identifier=WORKER,
                version="1.0.0",
                infohash="0" * 64,
                selector="all",
                state="done",
                accepted_at=head.clock(),
                accepted_by="carol",
                ended_at=head.clock(),
                ended_by=None,
            )
        )
    catalogue.denial.deny(WORKER, "1.0.0", reason="CVE-2026-1", actor="bob")
    catalogue.publisher.publish_if_due()
    catalogue.denial.undeny(WORKER, "1.0.0", reason="not affected", actor="bob")
    catalogue.publisher.publish_if_due()
    take(lists[1], NEW, "2.0.0")
    catalogue.intake.announce(lists[2], ImageChoice(version="1.0.0", title="worker"), actor="alice")
    catalogue.publisher.publish_if_due()
    return lists


def test_every_step_of_a_life_is_told_in_order(head: Head, endorser: Endorser) -> None:
    lists = whole_life(head, endorser)
    with serve(head), head.http() as http:
        told = http.get("/images/ccin2p3/history").json()
        of_one = http.get(f"/images/{REF}/history").json()
        missing = http.get("/images/nosuch/history")
    assert missing.status_code == 404
    assert [one["version"] for one in told["versions"]] == ["2.0.0", "1.0.0"]
    steps = told["history"]
    assert steps == sorted(steps, key=lambda step: step["at"])
    of_old = [step["what"] for step in steps if step["version"] == "1.0.0"]
    # One step a check.
    of_old = [what for what, _ in itertools.groupby(of_old)]
    expected = [
        "list-named",
        "image-expected",
        "image-received",
        "image-checked",
        "image-approved",
        "site-list-carries",
        "rollout-started",
        "rollout-done",
        "image-denied",
        "site-list-drops",
        "image-undenied",
        "site-list-carries",
        "image-superseded",
        "image-revoked",
        "site-list-drops",
    ]
    assert [what for what in of_old if what in expected] == expected
    denied = next(step for step in steps if step["what"] == "image-denied")
    assert (denied["actor"], denied["text"]) == ("bob", "CVE-2026-1")
    named = [step for step in steps if step["what"] == "list-named"]
    assert [step["detail"]["sha512"] for step in named] == [
        hashlib.sha512(signed).hexdigest() for signed in lists[:2]
    ]
    assert all(step["detail"]["endorser_dn"] == endorser.dn for step in named)
    omitted = next(step for step in steps if step["what"] == "list-omitted")
    assert omitted["detail"]["list_version"] == "3.0.0"
    assert {step["version"] for step in of_one["history"]} <= {"", "1.0.0"}


def test_the_site_lists_that_it_names_are_those_that_carried_it(
    head: Head, endorser: Endorser
) -> None:
    whole_life(head, endorser)
    carried: list[tuple[int, bool]] = []
    for file in (head.state_dir / "site-lists").iterdir():
        document = parse_site_list(open_smime(file.read_bytes()).document)
        carried.append((int(file.stem), any(one.version == "1.0.0" for one in document.images)))
    told = {
        int(step.detail["site_list"]): step.what
        for step in head.catalogue.history.of(REF).steps
        if step.what.startswith("site-list")
    }
    now_carries = False
    for version, carries in sorted(carried):
        if version in told:
            now_carries = told[version] == "site-list-carries"
        assert now_carries == carries, version
    assert list(told.values()).count("site-list-carries") == 2


def test_history_and_uses_on_the_command_line(
    run: Any, served: Head, endorser: Endorser, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_life(served, endorser)
    status, out, _ = run("image", "history", "ccin2p3")
    assert status == 0
    assert out.splitlines()[0] == f"{WORKER} (ccin2p3)"
    [line] = [line for line in out.splitlines() if "image-denied" in line]
    assert line.split()[1:] == ["1.0.0", "image-denied", "bob", "CVE-2026-1"]
    assert json.loads(run("image", "history", "ccin2p3", "--json")[1])["identifier"] == WORKER
    assert run("image", "history", "nosuch")[0] == 4

    assert run("image", "where-running", "ccin2p3")[1] == "in use nowhere\n"
    monkeypatch.setattr(served.rollouts, "node_view", says_it_holds("1.0.0"))
    with served.database.transaction() as session:
        now = datetime.now(UTC)
        session.add(Node(name="wn001", address="192.0.2.1", added_at=now, added_by="test"))
    lines = run("image", "where-running", "ccin2p3")[1].splitlines()
    since = "2026-03-01T11:00:00.000Z"
    assert lines[1].split() == [
        *("wn001", "1.0.0", "blocked", "alice", "process", "4711"),
        *(since, "l-1"),
    ]
    assert lines[2].split()[3:5] == ["1", "more"]
    document = json.loads(run("image", "where-running", REF, "--json")[1])
    assert (document["leases"], document["uses"][0]["node"]) == (2, "wn001")
    other = json.loads(run("image", "where-running", f"{WORKER}@2.0.0", "--json")[1])
    assert other["uses"] == []
    assert run("image", "where-running", f"{WORKER}@9.0.0")[0] == 4


def says_it_holds(version: str) -> Any:
    """A node's own words, as the rollout service has them."""
    holder = {"lease": "l-1", "user": "alice", "kind": "process", "pid": 4711}
    image = {
        "identifier": WORKER,
        "version": version,
        "state": "blocked",
        "leases": 2,
        "holders": [holder | {"since": "2026-03-01T11:00:00.000Z"}],
    }

    async def node_view(_name: str) -> Document:
        return {"online": True, "report": {"sent_at": "", "images": [image]}}

    return node_view


def test_undeny_on_the_command_line(
    run: Any, served: Head, endorser: Endorser, tmp_path: Path
) -> None:
    file, signed = tmp_path / "worker.img", tmp_path / "list.smime"
    file.write_bytes(OLD)
    signed.write_bytes(endorser.sign(entry(OLD)))
    assert run("image", "add", file, "--list", signed, "--alias", "worker")[0] == 0
    assert run("image", "deny", "worker", "--reason", "CVE")[0] == 0
    status, out, _ = run("image", "undeny", "worker", "--reason", "no CVE")
    assert (status, out.splitlines()[0]) == (0, f"{REF} (worker) worker: approved")
    assert [image.version for image in served.site_list().images] == ["1.0.0"]
    status, _, err = run("image", "undeny", "worker", "--reason", "again")
    assert (status, "not denied" in err) == (2, True)


def test_the_site_list_is_sent_once_to_who_asks_again(head: Head) -> None:
    head.catalogue.publisher.publish(why="test")
    with serve(head), head.http() as http:
        first = http.get("/site-list", headers={"Authorization": ""})
        tag = first.headers["etag"]
        assert first.headers["cache-control"] == "no-cache"
        for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            again = http.get("/site-list", headers={"If-None-Match": known})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == tag
        head.catalogue.publisher.publish(why="test")
        newer = http.get("/site-list", headers={"If-None-Match": tag})
    assert newer.status_code == 200
    assert newer.headers["etag"] != tag
