"""Handlers of the field run unchanged; those in docs/handlers do what they say; and kill -9."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distrib.db.intake_models import DeliveryState
from distrib.db.outbox import EventType, one_run
from distrib.events.settings import HandlerSettings
from tests.events.stories import (
    AVAILABLE,
    EXPIRE,
    INFOHASH,
    ONE,
    Outbox,
    Script,
    is_running,
    until,
    wait_until,
)

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EXAMPLES = ROOT / "docs" / "handlers"
OTHER_INFOHASH = "b4" * 32


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stand-ins of the clouds' commands keep what they were told."""
    monkeypatch.setenv("PATH", f"{HERE / 'standins'}:{os.environ['PATH']}")
    folder = tmp_path / "cloud"
    folder.mkdir()
    return folder


@pytest.fixture
def store(outbox: Outbox) -> None:
    """The raw images on the head."""
    for infohash, size_bytes in ((INFOHASH, 1000), (OTHER_INFOHASH, 2000)):
        file = outbox.state_dir / "images" / infohash / "image.raw"
        file.parent.mkdir(parents=True)
        file.write_bytes(bytes(size_bytes))


def handler(command: str | list[str], **more: Any) -> HandlerSettings:
    quick = {"retry_first_s": 0.02, "retry_longest_s": 0.1}
    return HandlerSettings(**({"name": "h", "command": command} | quick | more))


def images_of(cloud: Path) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((cloud / "images.json").read_text())
    return list(found.values())


def calls_of(cloud: Path, verb: str) -> list[list[str]]:
    lines = (cloud / "calls").read_text().splitlines()
    return [call for call in map(json.loads, lines) if verb in call[:2]]


@pytest.mark.usefixtures("store")
async def test_a_handler_of_the_field_runs_unchanged(outbox: Outbox, cloud: Path) -> None:
    title = """worker's "best" $(image)"""
    image = outbox.image(title=title, entry={"hv:format": "QCOW2"}, sha512="ef" * 64)
    async with outbox.delivering(handler(f"CLOUD='{cloud}' {HERE / 'field_handler'}")):
        with one_run():
            first = outbox.emit(EventType.PROCESS_PREFIX)
            outbox.emit(EventType.AVAILABLE_PREFIX, image)
            outbox.emit(EventType.AVAILABLE_POSTFIX, image)
            last = outbox.emit(EventType.PROCESS_POSTFIX)
        await until(lambda: outbox.is_done(first, last))
        assert (cloud / ONE).stat().st_size == 1000
        expired = outbox.emit(EXPIRE, image)
        await until(lambda: outbox.is_done(expired))
    session = outbox.events()[0].environment["VMCATCHER_EVENT_UUID_SESSION"]
    assert (cloud / "log").read_text().splitlines() == [
        f"installed {ONE} 1.0.0 '{title}'",
        f"processed {session}",
        f"removed {ONE}",
    ]
    assert not (cloud / ONE).exists()


@pytest.mark.usefixtures("store")
async def test_glance_gets_each_image_once_and_loses_what_expired(
    outbox: Outbox, cloud: Path
) -> None:
    config = cloud / "glance.conf"
    config.write_text(f"export OS_CLOUD={cloud}\nVISIBILITY=--community\n")
    (cloud / "torn").touch()
    title = "--public $(reboot) 'it\"s"
    old = outbox.image(title=title)
    async with outbox.delivering(handler([str(EXAMPLES / "glance"), str(config)])):
        first = outbox.emit(AVAILABLE, old)
        await until(lambda: outbox.is_done(first))
        # The first upload was torn off; what was left of it is gone.
        [image] = images_of(cloud)
        assert image == {
            "name": title,
            "status": "active",
            "bytes": 1000,
            "format": "raw",
            "properties": {
                "dc_identifier": ONE,
                "hv_version": "1.0.0",
                "distrib_infohash": INFOHASH,
                "distrib_sha512": "cd" * 64,
            },
        }
        assert len(calls_of(cloud, "create")) == 2
        again = outbox.emit(AVAILABLE, old)
        await until(lambda: outbox.is_done(again))
        assert len(calls_of(cloud, "create")) == 2
        new = outbox.image(version="2.0.0", infohash=OTHER_INFOHASH)
        newer = outbox.emit(AVAILABLE, new)
        await until(lambda: outbox.is_done(newer))
        assert [image["bytes"] for image in images_of(cloud)] == [2000]
        gone = outbox.emit(EXPIRE, new)
        await until(lambda: outbox.is_done(gone))
    assert images_of(cloud) == []
    assert all(call[-2] == "--" for call in calls_of(cloud, "create"))
    assert all("--community" in call for call in calls_of(cloud, "create"))


@pytest.mark.usefixtures("store")
async def test_opennebula_keeps_what_a_machine_uses_and_disables_it(
    outbox: Outbox, cloud: Path
) -> None:
    config = cloud / "opennebula.conf"
    config.write_text(f"export ONE_CLOUD={cloud}\nDATASTORE=images\n")
    old = outbox.image(title='a"\nPATH="/etc/shadow')
    async with outbox.delivering(handler([str(EXAMPLES / "opennebula"), str(config)])):
        first, again = outbox.emit(AVAILABLE, old), outbox.emit(AVAILABLE, old)
        await until(lambda: outbox.is_done(first, again))
        [image] = images_of(cloud)
        assert image["name"] == ONE
        assert image["description"] == f"distrib {INFOHASH} a_ PATH=_/etc/shadow".replace(
            "=_/etc/", "__" + "_etc_"
        )
        (cloud / "images.json").write_text(json.dumps({"1": image | {"used": True}}))
        new = outbox.image(version="2.0.0", infohash=OTHER_INFOHASH)
        newer = outbox.emit(AVAILABLE, new)
        await until(lambda: outbox.is_done(newer))
        [kept, current] = images_of(cloud)
        assert (kept["name"], kept["disabled"]) == (f"{ONE}_{newer}", True)
        assert (current["name"], current["bytes"]) == (ONE, 2000)
        gone = outbox.emit(EXPIRE, new)
        await until(lambda: outbox.is_done(gone))
    assert [image["name"] for image in images_of(cloud)] == [f"{ONE}_{newer}"]


@pytest.mark.usefixtures("store")
async def test_an_image_of_a_user_is_not_made_public(outbox: Outbox, cloud: Path) -> None:
    config = cloud / "conf"
    config.write_text(f"export OS_CLOUD={cloud} ONE_CLOUD={cloud}\nVISIBILITY=--public\nMODE=644\n")
    hers = outbox.image(audience={"users": ["alice"]}, proposed_by="alice")
    async with outbox.delivering(handler([str(EXAMPLES / "glance"), str(config)])):
        first = outbox.emit(AVAILABLE, hers)
        await until(lambda: outbox.is_done(first))
        assert "--private" in calls_of(cloud, "create")[0]
        hers.audience = {"all": True}
        opened = outbox.emit(AVAILABLE, hers)
        await until(lambda: outbox.is_done(opened))
        assert [image["visibility"] for image in images_of(cloud)] == ["--public"]
    (cloud / "images.json").unlink()
    hers.audience = {"users": ["alice"]}
    async with outbox.delivering(handler([str(EXAMPLES / "opennebula"), str(config)], name="one")):
        closed = outbox.emit(AVAILABLE, hers)
        await until(lambda: outbox.is_done(closed, handler="one"))
        assert [image["mode"] for image in images_of(cloud)] == ["600"]


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("example", "variable"), [("glance", "OS_CLOUD"), ("opennebula", "ONE_CLOUD")]
)
async def test_while_the_cloud_does_not_answer_an_example_fails_and_is_run_again(
    outbox: Outbox, cloud: Path, example: str, variable: str
) -> None:
    config = cloud / "conf"
    config.write_text(f"export {variable}={cloud}\n")
    image = outbox.image()
    async with outbox.delivering(handler([str(EXAMPLES / example), str(config)])):
        there = outbox.emit(AVAILABLE, image)
        await until(lambda: outbox.is_done(there))
        (cloud / "down").touch()
        gone = outbox.emit(EXPIRE, image)
        await until(lambda: tried(outbox, gone))
        assert outbox.state(gone) == DeliveryState.QUEUED
        (cloud / "down").unlink()
        await until(lambda: outbox.is_done(gone))
    assert images_of(cloud) == []


def tried(outbox: Outbox, event: int) -> bool:
    """Whether a handler has failed at it."""
    row = outbox.delivery(event)
    return row is not None and row.exit_status not in {None, 0}


def test_a_controller_that_is_killed_takes_its_handler_with_it_and_tells_it_again(
    outbox: Outbox, script: Callable[..., Script]
) -> None:
    hanging = script(
        'echo $$ >> "$DIR/pids"\n[ -e "$DIR/again" ] && exit 0\n'
        'sleep 1000 & echo $! >> "$DIR/pids"\nwait\n'
    )
    pids = hanging.folder / "pids"
    outbox.deliverer(hanging.settings())
    event = outbox.emit(AVAILABLE, outbox.image())

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.events.deliverer", str(outbox.state_dir)]
        settings = hanging.settings(grace_s=0.2).model_dump_json()
        return subprocess.Popen([*command, settings], cwd=ROOT, stdout=subprocess.DEVNULL)

    with start() as first:
        wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
        first.kill()
    wait_until(lambda: not any(is_running(int(pid)) for pid in pids.read_text().split()))
    assert outbox.state(event) == DeliveryState.QUEUED
    (hanging.folder / "again").touch()
    with start() as second:
        wait_until(lambda: outbox.is_done(event))
        second.kill()
    assert hanging.told() == [event, event]
    row = outbox.delivery(event)
    assert row is not None
    assert row.attempts == 2
