"""No room: said before the first byte is fetched, and nothing is left behind."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.farm.farm import Farm, Node
from tests.farm.process import CommandFailed
from tests.stories.test_rollout import MIB, sha256, start, wait

pytestmark = pytest.mark.timeout(180)

Join = Callable[..., Node]


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[Path]:
    """A block device of 24 MiB."""
    backing = tmp_path / "disk"
    with backing.open("wb") as file:
        file.truncate(24 * MIB)
    made = subprocess.run(
        ["losetup", "--find", "--show", str(backing)], capture_output=True, text=True, check=True
    )
    device = Path(made.stdout.strip())
    yield device
    # The flag that sealing sets outlives the loop device.
    subprocess.run(["blockdev", "--setrw", str(device)], check=True)
    subprocess.run(["losetup", "--detach", str(device)], check=True)


def test_a_full_quota_fails_the_pull_before_a_byte(farm: Farm, join: Join) -> None:
    image = farm.publish(16 * MIB, alias="toolarge")
    node = join("small", cache={"capacity_bytes": 8 * MIB})
    rollout = start(farm, image, node.name)
    shown = wait(farm, rollout, "failed")
    row = shown["nodes"][0]  # type: ignore[index]
    assert (row["state"], row["reason"]) == ("failed", "no-space")
    found = node.image(image)
    assert found is not None
    assert found["fetched_bytes"] == 0
    assert list((node.cache / "volumes").iterdir()) == []
    with pytest.raises(CommandFailed) as ended:
        farm.distrib("rollout", "start", "toolarge", f"--nodes={node.name}", "--wait")
    assert ended.value.status == 8


@pytest.mark.root
def test_a_device_that_is_too_small_fails_before_a_byte_and_a_fitting_one_is_filled(
    farm: Farm, join: Join, loop_device: Path
) -> None:
    node = join("devices", cache={"store": "device", "devices": [str(loop_device)]})
    large = farm.publish(32 * MIB, alias="large")
    shown = wait(farm, start(farm, large, node.name), "failed")
    row = shown["nodes"][0]  # type: ignore[index]
    assert (row["state"], row["reason"]) == ("failed", "target-too-small")
    fitting = farm.publish(16 * MIB, alias="fitting")
    wait(farm, start(farm, fitting, node.name))
    with loop_device.open("rb") as device:
        assert device.read(16 * MIB) == fitting.file.read_bytes()
        assert device.read() == bytes(8 * MIB)
    lease = node.ask("lease", "fitting", "--cow-mib=8")
    assert lease["format"] == "qcow2"
    node.run("release", lease["lease"])
    assert sha256(fitting.file) == fitting.sha256
