"""Handlers of the field run unchanged; and kill -9."""

from __future__ import annotations

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


@pytest.fixture
def cloud(tmp_path: Path) -> Path:
    """Where the field's handler keeps what it was told."""
    folder = tmp_path / "cloud"
    folder.mkdir()
    return folder


@pytest.fixture
def store(outbox: Outbox) -> None:
    """The raw image on the head."""
    file = outbox.state_dir / "images" / INFOHASH / "image.raw"
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(1000))


def handler(command: str | list[str], **more: Any) -> HandlerSettings:
    quick = {"retry_first_s": 0.02, "retry_longest_s": 0.1}
    return HandlerSettings(**({"name": "h", "command": command} | quick | more))


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
