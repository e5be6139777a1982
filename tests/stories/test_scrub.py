"""A disk goes bad below a running job: the node finds it by itself, says so, and mends it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from tests.farm.farm import Farm, Node
from tests.farm.process import CommandFailed, eventually
from tests.stories.test_rollout import MIB, start, wait
from tests.stories.test_upkeep import flip

pytestmark = pytest.mark.timeout(180)

Join = Callable[..., Node]


def test_a_bad_bit_is_found_told_to_the_site_and_to_the_lease_and_mended(
    farm: Farm, join: Join
) -> None:
    # Every two seconds or so, and as fast as the disk can.
    node = join("scrubbed", scrub={"every_days": 0.00002, "rate_bps": 1 << 30})
    image = farm.publish(8 * MIB, alias="scrubbed")
    wait(farm, start(farm, image, node.name))
    lease = node.ask("lease", image.alias, "--cow-mib=8", "--for=600")["lease"]
    other = node.ask("lease", image.alias, "--cow-mib=8", "--for=600")["lease"]
    infohash = (node.image(image) or {})["infohash"]
    node.kill()
    flip(node.cache / "volumes" / infohash / "image.raw", 5 * MIB + 17)
    node.start()

    def damaged() -> Any:
        leases = node.ask("leases")["leases"]
        return len(leases) == 2 and all(one["damaged"] for one in leases)

    eventually("found", damaged, limit_s=40)
    assert "DAMAGED" in node.run("leases")
    held = node.image(image) or {}
    assert (held["state"], held["reason"]) == ("leased", "hash-failed")
    assert "is bad" in held["text"]
    with pytest.raises(CommandFailed):
        node.run("lease", image.alias, "--cow-mib=8")

    def told() -> Any:
        database = next(farm.state.rglob("distrib.db"))
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as head:
            rows = head.execute(
                "SELECT detail FROM node_events WHERE node = ? AND kind = 'damaged'", (node.name,)
            )
            found = [json.loads(detail) for (detail,) in rows]
        return found if len(found) == 3 else None

    events = eventually("the head has heard of it", told, limit_s=30)
    assert {one.get("lease") for one in events} == {None, lease, other}
    assert {one["version"] for one in events} == {image.version}
    for one in (lease, other):
        node.run("release", one)
    eventually("mended", lambda: node.state(image) == "ready", limit_s=30)
    assert node.volume(image).read_bytes() == image.file.read_bytes()
    assert (node.image(image) or {})["reason"] is None
    eventually("read again", lambda: infohash in node.ask("status")["scrub"], limit_s=30)
    assert " good " in node.run("status")
