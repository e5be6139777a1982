"""One run of a handler: by whom, for how long, and what is left of it: nothing."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distrib.db.intake_models import DeliveryState
from distrib.errors import ConfigInvalid
from distrib.events.process import OUTPUT_MAX_BYTES, RunAs
from tests.events.stories import (
    AVAILABLE,
    Outbox,
    Script,
    is_running,
    until,
)

MakeScript = Callable[..., Script]


async def test_a_handler_that_hangs_is_ended_with_its_children_and_holds_nobody_up(
    outbox: Outbox, script: MakeScript
) -> None:
    stuck = script(
        "trap '' TERM\nsleep 1000 &\necho $! > \"$DIR/child\"\n"
        'echo $$ > "$DIR/self"\nwhile :; do sleep 1000; done\n',
        name="stuck",
    )
    quick = script(name="quick")
    async with outbox.delivering(
        stuck.settings("stuck", time_limit_s=0.5, grace_s=0.1, give_up_s=0),
        quick.settings("quick"),
    ):
        event = outbox.emit(AVAILABLE, outbox.image())
        await until(lambda: outbox.is_done(event, handler="quick"))
        assert outbox.state(event, "stuck") == DeliveryState.QUEUED
        await until(lambda: outbox.state(event, "stuck") == DeliveryState.GIVEN_UP)
    row = outbox.delivery(event, "stuck")
    assert row is not None
    assert (row.exit_status, row.output) == (None, "[ended by the time limit of 0.5 s]")
    pids = [int((stuck.folder / name).read_text()) for name in ("child", "self")]
    await until(lambda: not any(map(is_running, pids)))


async def test_the_last_words_are_kept_and_what_is_left_behind_is_ended(
    outbox: Outbox, script: MakeScript
) -> None:
    handler = script(
        'head -c 300000 /dev/zero | tr "\\0" x\nprintf "the\\0end" >&2\n'
        'sleep 1000 & echo $! > "$DIR/child"\nkill -9 $$\n'
    )
    async with outbox.delivering(handler.settings(give_up_s=0)):
        event = outbox.emit(AVAILABLE, outbox.image())
        await until(lambda: outbox.state(event) == DeliveryState.GIVEN_UP)
    row = outbox.delivery(event)
    assert row is not None
    assert row.exit_status == 128 + 9
    assert row.output.endswith("xxxthe\N{REPLACEMENT CHARACTER}end")
    assert len(row.output) == OUTPUT_MAX_BYTES
    child = int((handler.folder / "child").read_text())
    await until(lambda: not is_running(child))


async def test_a_program_that_is_not_there_is_a_failure_like_any(
    outbox: Outbox, script: MakeScript
) -> None:
    handler = script().settings(command=["/nowhere/handler"], give_up_s=0)
    async with outbox.delivering(handler):
        event = outbox.emit(AVAILABLE, outbox.image())
        await until(lambda: outbox.state(event) == DeliveryState.GIVEN_UP)
    row = outbox.delivery(event)
    assert row is not None
    assert row.exit_status == 127
    assert "/nowhere/handler" in row.output


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """Not below pytest's own folder, which is root's alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.root
async def test_a_handler_runs_as_its_own_user(outbox: Outbox, public_folder: Path) -> None:
    handler = Script(public_folder / "handler", "id -un; id -Gn; pwd\n")
    async with outbox.delivering(handler.settings(user="nobody")):
        event = outbox.emit(AVAILABLE, outbox.image())
        await until(lambda: outbox.is_done(event))
    row = outbox.delivery(event)
    assert row is not None
    assert row.output == "nobody\nnogroup\n/\n"
    assert handler.environment(event)["HOME"] == RunAs.named("nobody").home


def test_a_user_that_is_not_there_is_refused_at_the_start(
    outbox: Outbox, script: MakeScript
) -> None:
    with pytest.raises(ConfigInvalid, match="no user 'nobody-at-all'"):
        outbox.deliverer(script().settings(user="nobody-at-all"))


async def test_the_end_of_the_controller_ends_the_handler_and_counts_for_nothing(
    outbox: Outbox, script: MakeScript
) -> None:
    handler = script('echo $$ > "$DIR/self"\n[ -e "$DIR/again" ] || sleep 1000\n')
    async with outbox.delivering(handler.settings()):
        event = outbox.emit(AVAILABLE, outbox.image())
        await until((handler.folder / "self").exists)
    pid = int((handler.folder / "self").read_text() or 0)
    assert not is_running(pid)
    assert outbox.state(event) == DeliveryState.QUEUED
    (handler.folder / "again").touch()
    async with outbox.delivering(handler.settings()):
        await until(lambda: outbox.is_done(event))
    assert asyncio.all_tasks() == {asyncio.current_task()}
