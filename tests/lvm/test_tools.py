"""What every call of LVM's tools carries, and what becomes of its complaints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.cache import lvmtools
from agent.cache.lvm_inventory import Inventory, LogicalVolume
from agent.cache.lvmtools import LvmTools, own_line
from agent.cache.snapshots import SnapshotFill
from agent.watching import Care, care_for
from distrib.errors import ConfigInvalid, ToolMissing


def test_a_host_without_lvm_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lvmtools, "_ENVIRONMENT", {"PATH": str(tmp_path)})
    with pytest.raises(ToolMissing, match="lvm is not there") as missing:
        LvmTools.open("vg0")
    assert missing.value.hint == "install lvm2"


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "v" * 41, "-".join("v" * 25)])
def test_what_is_no_name_of_a_group_is_refused_unasked(name: str) -> None:
    with pytest.raises(ConfigInvalid, match="not the name of a volume group"):
        LvmTools.open(name)


def test_what_is_no_name_of_a_device_is_refused_unasked() -> None:
    with pytest.raises(ConfigInvalid, match="not the name of a device"):
        LvmTools.open("vg0", [Path('/dev/sda|","a|.*')])


def test_only_the_groups_own_disks_pass_the_filter() -> None:
    config = LvmTools("vg0", ("/dev/sdb", "/dev/disk/by-id/wwn-0x5.1"))._config(
        issue_discards=False
    )
    (patterns,) = re.findall(r"filter=\[(.*?)\] ", config)
    rules = re.findall(r'"([ar])\|(.*?)\|"', patterns)
    assert rules[-1] == ("r", ".*")

    def accepted(name: str) -> bool:
        return (
            next(kind for kind, rule in rules if re.search(rule.replace("\\\\", "\\"), name)) == "a"
        )

    assert accepted("/dev/sdb")
    assert accepted("/dev/disk/by-id/wwn-0x5.1")
    for name in ("/dev/sdb1", "/dev/sdc", "/dev/dm-3", "/dev/vg0/distrib-cow-l-1", "/dev/loop0",
                 "/dev/disk/by-id/wwn-0x5x1"):  # fmt: skip
        assert not accepted(name), name
    for setting in ("scan_lvs=0", "use_devicesfile=0", 'hints="none"', "archive=0", "backup=0",
                    "monitoring=0"):  # fmt: skip
        assert setting in config


def test_of_what_lvm_says_the_first_complaint_counts() -> None:
    said = "  WARNING: PV x is missing.\nFile descriptor 5 leaked\n  Cannot change VG vg0.\n  Hm.\n"
    assert own_line(said) == "Cannot change VG vg0."
    assert own_line("  WARNING: only this\n") == "WARNING: only this"
    assert own_line("") == ""


def test_a_snapshot_of_its_useful_size_holds_every_chunk_and_its_notes() -> None:
    group = Inventory("vg0", "", 4096, 1 << 20, 1 << 20, 0, ())
    chunks = 1000
    need = 1 + chunks + -(-chunks // 256)
    assert group.useful_cow_bytes(chunks * 4096) >= need * 4096
    assert group.useful_cow_bytes(chunks * 4096) <= (need + 1) * 4096


@pytest.mark.parametrize(
    ("percent", "overflowed", "safe", "care"),
    [
        (69.9, False, False, Care.NONE),
        (70.0, False, False, Care.EXTEND),
        (99.0, False, True, Care.NONE),
        (100.0, True, False, Care.END),
    ],
)
def test_what_a_snapshot_needs(percent: float, overflowed: bool, safe: bool, care: Care) -> None:
    fill = SnapshotFill("l-1", "a" * 64, 1 << 20, percent, overflowed, safe)
    assert care_for(fill, 70.0) is care


def test_a_volume_without_our_tag_is_not_ours() -> None:
    theirs = LogicalVolume("distrib-x", 1, frozenset(), "-wi-a-----", "", None, "254:0")
    assert not theirs.ours
    assert not LogicalVolume("data", 1, frozenset({"distrib"}), "-wi-a-----", "", None, None).ours
