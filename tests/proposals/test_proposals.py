"""Users bring images: for themselves alone, within a quota, until an admin opens them to all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from distrib.api.bearer import issue_token
from distrib.catalogue.proposals import PART_MAX_BYTES
from distrib.cli.main import main
from distrib.db.models import Role
from tests.farm.process import eventually
from tests.head.stories import Head
from tests.intake.disks import CLEAN, SSH_KEY, ext4, partitioned


def token_of(head: Head, user: str) -> str:
    with head.database.transaction() as session:
        return issue_token(
            session, name=user, role=Role.USER, now=head.clock(), actor="test", replace=True
        ).secret


class Shell:
    """Somebody at the command line."""

    def __init__(
        self, head: Head, token: str, config: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._capsys = capsys
        self._config = config
        config.write_text(f'url = "{head.url}"\nca = "{head.ca_file}"\ntoken = "{token}"\n')

    def run(self, *arguments: object) -> tuple[int, str]:
        """A command: its exit status, and what it said."""
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["--config", str(self._config), *(str(one) for one in arguments)])
        out, err = self._capsys.readouterr()
        return int(ended.value.code or 0), out + err

    def ask(self, *arguments: object) -> Any:
        status, out = self.run(*arguments, "--json")
        assert status == 0, out
        return json.loads(out)


@pytest.fixture
def shell(head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def of(user: str) -> Shell:
        token = head.token() if user == "admin" else token_of(head, user)
        return Shell(head, token, tmp_path / f"{user}.toml", capsys)

    return of


def test_a_user_runs_an_own_image_and_nobody_else_does_until_an_admin_says_so(
    head: Head, disk: Path, shell: Any
) -> None:
    alice, bob, admin = shell("alice"), shell("bob"), shell("admin")
    row = alice.ask("image", "propose", disk, "--title", "my analysis")
    assert (row["state"], row["audience"], row["proposed_by"]) == ("approved", ["alice"], "alice")
    # It is approved first, and then on the next list.
    eventually("a site list", lambda: head.catalogue.publisher.current() is not None, limit_s=60)
    [listed] = head.site_list().images
    assert listed.ref == row["image"]
    assert (listed.admits("alice"), listed.admits("bob"), listed.is_for_all) == (True, False, False)
    assert listed.origin.proposed_by == "alice"
    assert listed.aliases == ()
    # The same command again: it is there.
    assert alice.ask("image", "propose", disk, "--title", "again")["image"] == row["image"]
    # For others it is not there, and a user decides nothing.
    assert bob.ask("image", "list", "--mine")["images"] == []
    assert bob.run("image", "withdraw", row["identifier"])[0] == 4
    for refused in (
        ("image", "approve", row["image"], "--for-all"),
        ("image", "alias", "ccin2p3", row["identifier"]),
        ("image", "list"),
        ("image", "propose", disk, "--title", "x", "--for", "bob"),
    ):
        assert alice.run(*refused)[0] == 9
    # An admin who approves without saying for whom has not opened it.
    assert admin.ask("image", "approve", row["image"])["audience"] == ["alice"]
    assert admin.ask("image", "approve", row["image"], "--for-all")["audience"] == "all"
    assert head.site_list().images[0].is_for_all
    status, said = alice.run("image", "withdraw", row["identifier"])
    assert status == 9
    assert "approved for all" in said
    steps = [one["what"] for one in admin.ask("image", "history", row["image"])["history"]]
    assert steps[0] == "image-proposed"
    assert "list-unreadable" not in steps


def test_what_is_withdrawn_is_off_the_list_and_off_the_head(
    head: Head, disk: Path, shell: Any
) -> None:
    alice = shell("alice")
    row = alice.ask("image", "propose", disk, "--title", "once")
    bytes_here = head.catalogue.store.image_file(row["infohash"])
    assert bytes_here.exists()
    assert alice.ask("image", "withdraw", row["identifier"])["withdrawn"] == row["image"]
    listed = head.catalogue.publisher.current
    eventually("off the list", lambda: listed() and head.site_list().images == (), limit_s=60)
    assert not bytes_here.exists()
    assert alice.ask("image", "list", "--mine")["images"] == []


def test_an_image_that_fails_a_check_waits_for_an_admin(
    head: Head, tmp_path: Path, shell: Any
) -> None:
    key = {"root/.ssh/authorized_keys": SSH_KEY}
    file = partitioned(tmp_path / "door.raw", ext4(tmp_path / "root.img", CLEAN | key))
    alice = shell("alice")
    row = alice.ask("image", "propose", file, "--title", "with a door")
    assert (row["state"], row["awaits"]) == ("quarantined", "admin")
    assert head.catalogue.publisher.current() is None or head.site_list().images == ()


def test_an_upload_goes_on_where_it_was_broken_off_and_wrong_bytes_are_refused(
    head: Head, disk: Path, shell: Any
) -> None:
    content = disk.read_bytes()
    said = {"title": "t", "size_bytes": len(content)}
    said |= {"sha512": hashlib.sha512(content).hexdigest()}
    with head.http(token_of(head, "alice")) as http:
        row = http.post("/proposals", json=said).json()
        path = f"/proposals/{row['identifier']}"
        first = http.put(f"{path}/content?offset=0", content=content[:PART_MAX_BYTES])
        assert first.json() == {"received_bytes": PART_MAX_BYTES}
        # The answer was lost, and it is sent again: the head says where to go on.
        again = http.put(f"{path}/content?offset=0", content=content[:PART_MAX_BYTES])
        assert again.status_code == 409
        assert again.json()["error"]["ids"]["received_bytes"] == PART_MAX_BYTES
        # A controller that starts again keeps what has come.
        head.catalogue.quarantine.recover()
        assert http.get(path).json()["received_bytes"] == PART_MAX_BYTES
        rest = bytes(len(content) - PART_MAX_BYTES)
        wrong = http.put(f"{path}/content?offset={PART_MAX_BYTES}", content=rest)
        assert wrong.json()["error"]["code"] == "digest-mismatch"
        assert http.get(path).json()["received_bytes"] == 0
    # The command does all of it.
    assert shell("alice").ask("image", "propose", disk, "--title", "t")["state"] == "approved"


def test_a_user_has_no_more_than_the_quota(head: Head) -> None:
    def say(size_bytes: int, seed: int) -> dict[str, Any]:
        sha512 = hashlib.sha512(bytes([seed])).hexdigest()
        return {"title": "t", "size_bytes": size_bytes, "sha512": sha512}

    with head.http(token_of(head, "alice")) as http:
        too_large = http.post("/proposals", json=say(65 << 20, 0)).json()["error"]
        assert (too_large["code"], too_large["exit"]) == ("quota-exceeded", 5)
        for seed in (1, 2):
            assert http.post("/proposals", json=say(1000, seed)).status_code == 201
        assert http.post("/proposals", json=say(1000, 3)).json()["error"]["code"] == (
            "quota-exceeded"
        )
        # What nobody sends is dropped after a while, and makes room.
        head.clock.ahead = head.clock.ahead.__class__(days=8)
        head.catalogue.admission.drop_unfinished()
        assert http.get("/proposals").json()["images"] == []
