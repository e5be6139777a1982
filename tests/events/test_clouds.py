"""The handlers for clouds in docs/handlers against FakeGlance and FakeOpenNebula, over TLS."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from distrib.events.settings import HandlerSettings
from distrib.trust.testpki import Authority, Issued, Role
from tests.events.cloud_server import serving
from tests.events.fake_glance import PROJECT, SECRET, TOKEN, FakeGlance
from tests.events.fake_opennebula import DISABLED, ERROR, SESSION, USED, FakeOpenNebula
from tests.events.stories import AVAILABLE, EXPIRE, INFOHASH, ONE, Outbox, until

HANDLERS = Path(__file__).parents[2] / "docs" / "handlers"
NEWER = "b4" * 32
TITLE = """--public $(reboot) 'it"s </NAME>"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("cloud") / "ca"
    return Authority.create(folder, "Cloud", now=datetime.now(UTC))


@pytest.fixture(scope="module")
def server(authority: Authority) -> Issued:
    return authority.issue(Role.SERVER, now=datetime.now(UTC), hosts=["localhost"])


@dataclass
class Handler:
    """One of docs/handlers with its settings file, and files of images to tell it of."""

    program: str
    folder: Path
    settings: dict[str, str]

    @property
    def command(self) -> list[str]:
        lines = [f"{name} = {value}" for name, value in self.settings.items()]
        config = self.folder / "handler.conf"
        config.write_text("\n".join([f"[{self.program}]", *lines]))
        return [str(HANDLERS / self.program), str(config)]

    def environment(self, type_: str, version: str = "1.0.0", **more: str) -> dict[str, str]:
        infohash = INFOHASH if version == "1.0.0" else NEWER
        file = self.folder / f"{infohash}.raw"
        if not file.exists():
            file.write_bytes(version.encode() * 200)
        return {
            "PATH": os.environ["PATH"],
            "VMCATCHER_EVENT_TYPE": type_,
            "VMCATCHER_EVENT_DC_IDENTIFIER": ONE,
            "VMCATCHER_EVENT_HV_VERSION": version,
            "VMCATCHER_EVENT_DC_TITLE": TITLE,
            "VMCATCHER_EVENT_FILENAME": str(file),
            "DISTRIB_EVENT_INFOHASH": infohash,
            "DISTRIB_EVENT_RAW_SHA512": hashlib.sha512(file.read_bytes()).hexdigest(),
            "DISTRIB_EVENT_AUDIENCE": "all",
            **{f"DISTRIB_EVENT_{name}": value for name, value in more.items()},
        }

    def begin(self, type_: str, version: str = "1.0.0", **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command,
            env=self.environment(type_, version, **more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def told(self, type_: str, version: str = "1.0.0", **more: str) -> str:
        """What it said; it took the event."""
        with self.begin(type_, version, **more) as process:
            said = process.communicate()[0]
        assert process.returncode == 0, said
        return said

    def refused(self, type_: str, version: str = "1.0.0", **more: str) -> str:
        """What it said; it did not take the event."""
        with self.begin(type_, version, **more) as process:
            said = process.communicate()[0]
        assert process.returncode == 1, said
        assert said.startswith(f"{self.program}: ")
        assert said.count("\n") == 1
        return said


def secret_file(folder: Path, text: str) -> str:
    file = folder / "secret"
    file.write_text(text + "\n")
    file.chmod(0o600)
    return str(file)


@pytest.fixture
def fake_glance(server: Issued) -> Iterator[FakeGlance]:
    cloud = FakeGlance()
    with serving(cloud, str(server.certificate_path), str(server.key_path)) as cloud.url:
        yield cloud


@pytest.fixture
def glance(fake_glance: FakeGlance, authority: Authority, tmp_path: Path) -> Handler:
    settings = {
        "keystone": f"{fake_glance.url}/v3",
        "application_credential_id": "c1",
        "application_credential_secret_file": secret_file(tmp_path, SECRET),
        "ca_file": str(authority.directory / "ca.pem"),
        "visibility": "community",
        "region": "R1",
        "wait_s": "5",
    }
    return Handler("glance", tmp_path, settings)


@pytest.fixture
def fake_opennebula() -> FakeOpenNebula:
    return FakeOpenNebula()


@pytest.fixture
def opennebula(
    fake_opennebula: FakeOpenNebula, server: Issued, authority: Authority, tmp_path: Path
) -> Iterator[Handler]:
    with serving(fake_opennebula, str(server.certificate_path), str(server.key_path)) as url:
        settings = {
            "url": f"{url}/RPC2",
            "auth_file": secret_file(tmp_path, SESSION),
            "ca_file": str(authority.directory / "ca.pem"),
            "datastore_id": "104",
            "mode": "644",
        }
        yield Handler("opennebula", tmp_path, settings)


def told_of(image: dict[str, Any]) -> tuple[str, str, bool]:
    return image["status"], image["visibility"], image["os_hidden"]


def test_glance_keeps_the_identifier_of_an_image_that_goes_and_comes_back(
    glance: Handler, fake_glance: FakeGlance
) -> None:
    glance.told("AvailablePostfix")
    [image] = fake_glance.shown()
    assert told_of(image) == ("active", "community", False)
    assert (image["disk_format"], image["container_format"]) == ("raw", "bare")
    assert (image["name"], image["size"]) == (TITLE, 1000)
    assert (image["dc_identifier"], image["hv_version"]) == (ONE, "1.0.0")
    identifier = image["id"]
    fake_glance.calls.clear()
    glance.told("AvailablePostfix")
    assert {call.split()[0] for call in fake_glance.calls[1:]} == {"GET"}
    for _ in range(2):
        glance.told("ExpirePrefix")
        assert told_of(image) == ("deactivated", "community", False)
    # Approved again, for one user only.
    glance.told("AvailablePostfix", AUDIENCE="users:alice")
    assert told_of(image) == ("active", "private", False)
    assert [one["id"] for one in fake_glance.shown()] == [identifier]


def test_glance_hides_what_a_newer_version_replaced(
    glance: Handler, fake_glance: FakeGlance
) -> None:
    glance.told("AvailablePostfix")
    glance.told("AvailablePostfix", "2.0.0")
    old, new = fake_glance.shown()
    assert (told_of(old)[2], told_of(new)[2]) == (True, False)
    # It is told of once more, to those that keep versions apart: it stays hidden.
    glance.told("AvailablePostfix", REPLACED_BY="2.0.0")
    assert (old["os_hidden"], new["os_hidden"]) == (True, False)
    glance.told("ExpirePrefix", REPLACED_BY="2.0.0")
    assert (old["status"], new["status"]) == ("deactivated", "active")
    glance.told("AvailablePostfix", REPLACED_BY="2.0.0")
    # The newest goes: all of the UUID go, and what is left is available once more.
    glance.told("ExpirePrefix", "2.0.0")
    assert (old["status"], new["status"]) == ("deactivated", "deactivated")
    glance.told("AvailablePostfix")
    assert (told_of(old), told_of(new)[::2]) == (
        ("active", "community", False),
        ("deactivated", True),
    )
    # A version that was never shown goes alone.
    glance.told("ExpirePrefix", "2.0.0")
    assert old["status"] == "active"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
async def test_glance_is_told_again_where_it_did_and_did_not_answer(
    glance: Handler, fake_glance: FakeGlance, outbox: Outbox, method: str
) -> None:
    # The token alone is kept by something else, so that the first POST makes the image.
    secret = secret_file(glance.folder, TOKEN)
    more = {"token_file": secret, "url": fake_glance.url, "project_id": PROJECT}
    glance.settings |= more
    file = outbox.state_dir / "images" / INFOHASH / "image.raw"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"raw")
    image = outbox.image(sha512=hashlib.sha512(b"raw").hexdigest())
    fake_glance.failing = {method: 0}
    quick = HandlerSettings(name="h", command=glance.command, retry_first_s=0.02)
    async with outbox.delivering(quick):
        event = outbox.emit(AVAILABLE, image)
        await until(lambda: outbox.is_done(event))
        row = outbox.delivery(event)
        assert row is not None
        assert row.attempts == 2
        [made] = fake_glance.shown()
        assert told_of(made) == ("active", "community", False)
        gone = outbox.emit(EXPIRE, image)
        await until(lambda: outbox.is_done(gone))
    assert made["status"] == "deactivated"


def test_glance_has_one_image_after_a_handler_was_killed_in_its_upload(
    glance: Handler, fake_glance: FakeGlance
) -> None:
    with (glance.folder / f"{INFOHASH}.raw").open("wb") as file:
        file.truncate(64 << 20)
    fake_glance.hold = fake_glance.uploading.__class__()
    with glance.begin("AvailablePostfix") as process:
        assert fake_glance.uploading.wait(10)
        process.kill()
    [image] = fake_glance.shown()
    assert told_of(image) == ("saving", "private", True)
    fake_glance.hold.set()
    glance.told("AvailablePostfix")
    assert [one["id"] for one in fake_glance.shown()] == [image["id"]]
    assert told_of(image) == ("active", "community", False)


def test_glance_shows_nobody_other_bytes_than_the_sites(
    glance: Handler, fake_glance: FakeGlance
) -> None:
    fake_glance.spoils = True
    assert "has other bytes (sha512); it was deleted" in glance.refused("AvailablePostfix")
    assert fake_glance.shown() == []
    fake_glance.spoils, fake_glance.algorithm = False, "sha256"
    glance.told("AvailablePostfix")


def test_glance_leaves_images_of_other_projects_alone(
    glance: Handler, fake_glance: FakeGlance
) -> None:
    fake_glance.page = 2
    for _ in range(5):
        foreign = fake_glance._create({"name": "foreign", "dc_identifier": ONE, "hv_version": "1"})
        foreign |= {"owner": "another", "status": "active"}
    other = fake_glance._create({"name": "ours", "dc_identifier": "another"})
    glance.told("AvailablePostfix")
    glance.told("ExpirePrefix")
    statuses = [one["status"] for one in fake_glance.shown()]
    assert statuses == [*["active"] * 5, "queued", "deactivated"]
    assert not other["os_hidden"]


def test_glance_says_in_one_line_what_is_wrong(
    glance: Handler, fake_glance: FakeGlance, tmp_path: Path
) -> None:
    fake_glance.failing = {"GET": 503}
    said = glance.refused("AvailablePostfix")
    assert "GET https://localhost:" in said
    assert "503" in said
    assert "no valid host was found" in said
    for changed, what in (
        ({"ca_file": ""}, "certificate verify failed"),
        ({"ca_file": str(tmp_path / "none")}, "No such file"),
        ({"keystone": fake_glance.url.replace("https", "http")}, "not an https:// address"),
        ({"keystone": "https://localhost:1/v3"}, "Connection refused"),
        ({"visibility": "all"}, "it may be private, shared, community, public"),
        ({"application_credential_id": "c2"}, "401"),
        ({"region": "R2"}, "no image service"),
        ({"timeout_s": "soon"}, "could not convert"),
    ):
        broken = Handler("glance", tmp_path, glance.settings | changed)
        assert what in broken.refused("AvailablePostfix")
    (tmp_path / "secret").chmod(0o644)
    assert "chmod o=" in glance.refused("ExpirePrefix")
    assert fake_glance.shown() == []


def test_opennebula_keeps_the_identifier_and_calls_the_newest_by_the_uuid(
    opennebula: Handler, fake_opennebula: FakeOpenNebula
) -> None:
    opennebula.told("AvailablePostfix")
    [image] = fake_opennebula.shown()
    assert (image.name, image.mode, image.size_bytes) == (ONE, "644", 1000)
    assert image.template == {
        "TYPE": "OS",
        "PERSISTENT": "NO",
        "FORMAT": "raw",
        "PATH": str(opennebula.folder / f"{INFOHASH}.raw"),
        "DESCRIPTION": TITLE,
        "DISTRIB_UUID": ONE,
        "DISTRIB_VERSION": "1.0.0",
        "DISTRIB_INFOHASH": INFOHASH,
    }
    for _ in range(2):
        opennebula.told("ExpirePrefix")
        assert (image.state, image.mode) == (DISABLED, "600")
    opennebula.told("AvailablePostfix", AUDIENCE="users:alice")
    assert (image.state, image.mode) == (1, "600")
    opennebula.told("AvailablePostfix")
    assert image.mode == "644"
    opennebula.told("AvailablePostfix", "2.0.0")
    old, new = fake_opennebula.shown()
    assert (old.name, old.mode) == (f"{ONE}_{INFOHASH[:16]}", "600")
    assert (new.name, new.mode) == (ONE, "644")
    old.state = USED
    assert "in use: private now" in opennebula.told("ExpirePrefix", "2.0.0")
    assert (new.state, new.mode, old.state) == (DISABLED, "600", USED)
    opennebula.told("AvailablePostfix")
    assert (old.name, old.mode, new.name) == (ONE, "644", f"{ONE}_{NEWER[:16]}")


@pytest.mark.parametrize(
    ("call", "code"),
    [("one.image.allocate", 0), ("one.image.chmod", 0), ("one.image.rename", 0x2000)],
)
def test_opennebula_is_told_again_where_it_did_and_did_not_answer(
    opennebula: Handler, fake_opennebula: FakeOpenNebula, call: str, code: int
) -> None:
    fake_opennebula.failing = {call: code}
    assert call in opennebula.refused("AvailablePostfix")
    opennebula.told("AvailablePostfix")
    [image] = fake_opennebula.shown()
    assert (image.name, image.mode, image.state) == (ONE, "644", 1)


def test_opennebula_gets_a_copy_that_failed_once_more(
    opennebula: Handler, fake_opennebula: FakeOpenNebula
) -> None:
    broken = Handler("opennebula", opennebula.folder / "images", opennebula.settings)
    broken.folder.mkdir()
    with broken.begin("AvailablePostfix") as process:
        # OpenNebula may not read it where it lies.
        (broken.folder / f"{INFOHASH}.raw").unlink()
        said = process.communicate()[0]
    assert process.returncode == 1
    assert "was not copied: Error copying image: not allowed" in said
    [image] = fake_opennebula.shown()
    assert image.state == ERROR
    opennebula.told("AvailablePostfix")
    [again] = fake_opennebula.shown()
    assert (again.name, again.state) == (ONE, 1)
    fake_opennebula.images.clear()
    fake_opennebula.copying = 1
    opennebula.told("AvailablePostfix")
    assert [one.state for one in fake_opennebula.shown()] == [1]
    fake_opennebula.images.clear()
    fake_opennebula.copying = 100
    slow = Handler("opennebula", opennebula.folder, opennebula.settings | {"wait_s": "0"})
    assert "still copied" in slow.refused("AvailablePostfix")
    assert slow.told("ExpirePrefix") == ""
    assert fake_opennebula.shown() == []


def test_opennebula_says_in_one_line_what_is_wrong(
    opennebula: Handler, fake_opennebula: FakeOpenNebula, tmp_path: Path
) -> None:
    for changed, what in (
        ({"ca_file": ""}, "certificate verify failed"),
        ({"url": "http://one.example.org:2633/RPC2"}, "not https://, and not on this host"),
        ({"url": "http://localhost:1/RPC2"}, "Connection refused"),
        ({"url": opennebula.settings["url"].replace("RPC2", "")}, "one.imagepool.info"),
        ({"mode": "rw-"}, "three octal digits"),
        ({"datastore_id": "default"}, "a number is meant"),
        ({"datastore_id": "1"}, "code 0x0400"),
    ):
        broken = Handler("opennebula", tmp_path, opennebula.settings | changed)
        assert what in broken.refused("AvailablePostfix")
    (tmp_path / "secret").write_text("oneadmin:wrong")
    assert "couldn't be authenticated" in opennebula.refused("ExpirePrefix")
    (tmp_path / "secret").chmod(0o644)
    assert "chmod o=" in opennebula.refused("ExpirePrefix")
    assert fake_opennebula.shown() == []
