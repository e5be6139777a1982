"""An administrator looks after a node's cache: what goes, why, and what is told of it."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agent.socket.client import ask
from tests.farm.farm import Farm, Node
from tests.farm.process import CommandFailed, eventually
from tests.stories.test_rollout import MIB, start, wait

pytestmark = pytest.mark.timeout(180)

Join = Callable[..., Node]


def open_files(node: Node, name: str) -> list[str]:
    """The files of that name that the agent has open, those without a name any more too."""
    assert node.agent is not None
    links = Path(f"/proc/{node.agent.pid}/fd").iterdir()
    return [target for link in links if name in (target := str(link.readlink()))]


def flip(file: Path, at: int) -> None:
    """A bit that the disk has changed: nothing else of the file is."""
    before = file.stat()
    mode = before.st_mode
    file.chmod(0o644)
    with file.open("r+b") as disk:
        disk.seek(at)
        was = disk.read(1)[0]
        disk.seek(at)
        disk.write(bytes([was ^ 1]))
        os.fsync(disk.fileno())
    file.chmod(mode)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_flipped_bit_is_found_marked_and_mended(farm: Farm, join: Join) -> None:
    node = join("verified")
    image = farm.publish(8 * MIB, alias="verified")
    wait(farm, start(farm, image, node.name))
    lines: list[dict[str, Any]] = []
    answer = ask(node.socket, "verify", image=image.ref, on_line=lines.append)
    assert answer["good"]
    assert lines[-1]["pieces_done"] == lines[-1]["pieces"] > 0
    lease = node.ask("lease", image.alias, "--cow-mib=8")
    flip(node.volume(image), 5 * MIB + 17)
    with pytest.raises(CommandFailed) as found:
        node.run("verify", "--all")
    assert found.value.status == 3
    with pytest.raises(CommandFailed) as refused:
        node.run("lease", image.alias, "--cow-mib=8")
    assert refused.value.status == 4
    with pytest.raises(CommandFailed, match="image-damaged"):
        node.run("doctor", "--config", str(node.directory / "agent.toml"))
    node.run("release", lease["lease"])
    eventually("mended", lambda: node.state(image) == "ready", limit_s=20)
    assert node.volume(image).read_bytes() == image.file.read_bytes()
    node.run("verify", image.alias)


def test_what_nobody_needs_is_collected_and_told(farm: Farm, join: Join) -> None:
    node = join("collected", cache={"capacity_bytes": 40 * MIB})
    kept, old = farm.publish(8 * MIB, alias="kept"), farm.publish(8 * MIB, alias="old")
    wait(farm, start(farm, kept, node.name))
    wait(farm, start(farm, old, node.name))
    infohash = (node.image(old) or {})["infohash"]
    farm.distrib("image", "deny", old.alias, "--reason", "no more")
    eventually("blocked", lambda: node.state(old) == "blocked", limit_s=30)
    eventually("not desired", lambda: node.ask("gc", "--dry-run")["evicted"], limit_s=30)
    assert node.volume(old).exists(), "a dry run removes nothing"
    answer = node.ask("gc")
    assert [one["image"] for one in answer["evicted"]] == [old.ref]
    assert answer["freed_bytes"] == 8 * MIB
    assert any(f"{infohash}.torrent" in file for file in answer["files"])
    assert not list((node.directory / "state" / "torrents").glob(f"{infohash}*"))
    assert node.state(kept) == "ready"
    assert open_files(node, infohash) == []
    assert node.ask("gc")["evicted"] == []


def test_room_for_an_image_is_made_of_one_that_is_closed_first(farm: Farm, join: Join) -> None:
    node = join("crowded", cache={"capacity_bytes": 20 * MIB})
    first, second = (
        farm.publish(12 * MIB, alias="closed-first"),
        farm.publish(12 * MIB, alias="closed-second"),
    )
    wait(farm, start(farm, first, node.name))
    farm.distrib("image", "deny", first.alias, "--reason", "no more")
    eventually("blocked", lambda: node.state(first) == "blocked", limit_s=30)
    wait(farm, start(farm, second, node.name))
    assert node.state(second) == "ready"
    log = (node.directory / "agent.log").read_text()
    evicted = next(line for line in log.splitlines() if '"evicted"' in line)
    assert first.ref in evicted
    assert second.ref in evicted
    assert "evicted-while-open" not in log

    def told() -> Any:
        database = next(farm.state.rglob("distrib.db"))
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as head:
            rows = head.execute(
                "SELECT detail FROM node_events WHERE node = ? AND kind = 'evicted'", (node.name,)
            )
            return [json.loads(detail) for (detail,) in rows]

    (event,) = eventually("the head has heard of it", told, limit_s=30)
    assert (event["identifier"], event["version"]) == (first.identifier, first.version)
    assert (event["reason"], event["beneficiary"]) == ("evicted", second.ref)
    assert event["text"].startswith("room: ")
