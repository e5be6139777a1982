"""An agent whose store is a volume group, from rollout to release, killed in between."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.farm.farm import Loopback, farm_on_loopback
from tests.farm.process import eventually
from tests.lvm.conftest import content, write
from tests.uml.disks import VG, run, volume_group

pytestmark = [pytest.mark.uml, pytest.mark.long, pytest.mark.timeout(600)]
MIB = 1 << 20


@pytest.fixture
def group() -> Iterator[str]:
    with volume_group(extent="1m") as name:
        yield name


def test_a_job_leases_writes_and_gives_back_over_a_killed_agent(group: str, tmp_path: Path) -> None:
    with farm_on_loopback(tmp_path / "farm", 1, add=False) as farm:
        image = farm.publish(8 * MIB, alias="worker")
        node = farm.add_node(
            "wn1", Loopback(2), cache={"store": "lvm", "lvm": {"vg": VG, "watch_interval_s": 1}}
        )
        node.start()
        eventually("online", lambda: farm.ask("node", "show", "wn1")["online"], limit_s=60)
        farm.ask("rollout", "start", image.alias, "--nodes=wn1")
        eventually("ready", lambda: node.state(image) == "ready", limit_s=120)

        lease = node.ask("lease", image.alias, "--for=3600", "--cow-mib=4", "--scratch-mib=1")
        device, scratch = Path(lease["device"]), Path(lease["scratch"])
        assert lease["block"]
        assert content(device) == image.file.read_bytes()
        assert content(scratch) == bytes(MIB)
        written = os.urandom(MIB)
        write(device, written, 2 * MIB)

        def held() -> dict[str, Any]:
            (one,) = node.ask("leases")["leases"]
            assert one["lease"] == lease["lease"]
            return dict(one)

        assert 25 <= held()["filled_percent"] <= 30, "a quarter and its notes"

        node.kill()
        write(scratch, b"the job does not notice")
        node.start()
        eventually("still ready", lambda: node.state(image) in ("ready", "leased"), limit_s=60)
        assert 25 <= held()["filled_percent"] <= 30
        assert content(device)[2 * MIB : 3 * MIB] == written
        assert content(node.volume(image)) == image.file.read_bytes(), "the image is as it was"

        second = node.ask("lease", image.alias, "--for=3600", "--cow-mib=4")
        assert content(Path(second["device"])) == image.file.read_bytes()
        node.run("release", second["lease"])
        node.run("release", lease["lease"])
        assert not device.exists()
        assert not scratch.exists()
        assert node.ask("leases") == {"leases": []}
        left = run("lvs", "--noheadings", "-o", "lv_name", VG).stdout.split()
        assert left == [f"distrib-{(node.image(image) or {})['infohash']}"]
