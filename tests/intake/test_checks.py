"""What the checks say of real disks, none of which is ever mounted."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from distrib.inspection.checks.age import Age
from distrib.inspection.checks.site import site_checks
from distrib.inspection.checks.subject import Check, Facts, Finding, Outcome
from distrib.inspection.checks.table import BUILT_IN
from distrib.inspection.inspect import inspect
from distrib.inspection.sandbox import Sandbox
from tests.intake.disks import CLEAN, MIB, SSH_KEY, ext4, fat, partitioned, run, xfs

YEAR_S = 365 * 86400.0
HASH = b"$6$rounds=5000$salt$abcdefghijklmnopqrstuvwxyz"


def look(
    image: Path,
    *,
    checks: tuple[Check, ...] = BUILT_IN,
    max_age_s: float = YEAR_S,
    created: datetime | None = None,
) -> dict[str, Finding]:
    """What all checks say."""
    facts = Facts("uuid@1", "worker", datetime.now(UTC), max_age_s, created)
    return dict(asyncio.run(inspect(image, checks, facts, sandbox=Sandbox.of_user())))


def outcomes(findings: dict[str, Finding]) -> set[str]:
    return {str(finding.outcome) for finding in findings.values()}


@pytest.fixture(params=["ext4", "xfs", "fat"])
def make(request: pytest.FixtureRequest) -> object:
    """Every file system that is read."""
    return {"ext4": ext4, "xfs": xfs, "fat": fat}[request.param]


def test_a_clean_guest_passes_every_check(tmp_path: Path, make: object) -> None:
    disk = partitioned(tmp_path / "disk.raw", make(tmp_path / "root.img", CLEAN))  # type: ignore[operator]

    findings = look(disk)

    assert outcomes(findings) == {"pass"}, findings
    assert findings["partition-table"].text.startswith("gpt; partition 1: ")


def test_what_a_guest_brings_along_is_named_with_its_path(tmp_path: Path, make: object) -> None:
    files = CLEAN | {
        "etc/ssh/ssh_host_ed25519_key": b"-----BEGIN OPENSSH PRIVATE KEY-----\n",
        "root/.ssh/authorized_keys": SSH_KEY,
        "home/alice/.ssh/authorized_keys": b"# nobody\n" + SSH_KEY,
        "srv/bob/.ssh/authorized_keys2": SSH_KEY,
        "etc/shadow": b"root:" + HASH + b":19000:0:99999:7:::\nguest::19000::::::\nbob:!:1::::::\n",
    }
    disk = partitioned(tmp_path / "disk.raw", make(tmp_path / "root.img", files))  # type: ignore[operator]

    findings = look(disk)

    assert findings["ssh-host-keys"].outcome is Outcome.FAIL
    assert "/etc/ssh/ssh_host_ed25519_key" in findings["ssh-host-keys"].text
    keys = findings["authorized-keys"]
    assert keys.outcome is Outcome.FAIL
    for path in ("/root/.ssh/", "/home/alice/.ssh/", "/srv/bob/.ssh/authorized_keys2"):
        assert path in keys.text
    passwords = findings["shadow-passwords"].text
    assert "/etc/shadow: root has a password" in passwords
    assert "/etc/shadow: guest has an empty password" in passwords
    assert "bob" not in passwords
    # What is secret is not repeated.
    assert "salt" not in str(findings)


def test_links_are_followed_within_the_image_only(tmp_path: Path) -> None:
    files = CLEAN | {
        "etc/shadow": Path("../usr/share/hidden"),
        "usr/share/hidden": b"root:" + HASH + b":1::::::\n",
        "root/.ssh": Path("/var/keys"),
        "var/keys/authorized_keys": SSH_KEY,
        "home/alice/.ssh/authorized_keys": Path("/" + "../" * 30 + "etc/hostname"),
        "home/eve": Path("/home/eve"),
    }
    root = ext4(tmp_path / "root.img", files)

    findings = look(partitioned(tmp_path / "disk.raw", root))

    assert "root has a password" in findings["shadow-passwords"].text
    # A link that leads nowhere for ever makes it no pass; the key is named all the same.
    assert findings["authorized-keys"].outcome is not Outcome.PASS


def test_a_link_out_of_its_file_system_is_not_passed_over(tmp_path: Path) -> None:
    files = {name: file for name, file in CLEAN.items() if not name.startswith("etc/")}
    root = ext4(tmp_path / "root.img", files | {"etc": Path("/data/config")})
    data = ext4(tmp_path / "data.img", {"config/shadow": b"root:" + HASH + b":1::::::\n"})
    decoy = ext4(tmp_path / "decoy.img", CLEAN)

    findings = look(partitioned(tmp_path / "disk.raw", root, data, decoy))

    assert findings["shadow-passwords"].outcome is Outcome.NOT_INSPECTED
    assert "/etc is a link that leads to nothing here" in findings["shadow-passwords"].text


def test_what_is_not_there_behind_a_link_is_just_not_there(tmp_path: Path) -> None:
    passwd = b"root:x:0:0:root:/root:/bin/sh\nsshd:x:7:7::/var/run/sshd:/bin/false\n"
    files = CLEAN | {"etc/passwd": passwd, "var/run": Path("../run"), "run/lock/none": b""}
    root = ext4(tmp_path / "root.img", files)

    assert outcomes(look(partitioned(tmp_path / "disk.raw", root))) == {"pass"}


def test_a_home_on_another_partition_is_looked_into(tmp_path: Path) -> None:
    passwd = b"root:x:0:0:root:/root:/bin/sh\neve:x:7:7::/srv/users/staff/eve:/bin/sh\n"
    root = ext4(tmp_path / "root.img", CLEAN | {"etc/passwd": passwd})
    users = ext4(tmp_path / "users.img", {"staff/eve/.ssh/authorized_keys": SSH_KEY})

    findings = look(partitioned(tmp_path / "disk.raw", root, users))

    assert findings["authorized-keys"].outcome is Outcome.FAIL
    assert "partition 2 (ext): /staff/eve/.ssh/authorized_keys" in findings["authorized-keys"].text


def test_names_in_an_image_do_nothing_to_a_terminal(tmp_path: Path) -> None:
    nasty = "ssh_host_\x1b[2J\n\u202ekey"
    root = ext4(tmp_path / "root.img", CLEAN | {f"etc/ssh/{nasty}": b"x", "home/-rf *;$(id)`": b""})

    findings = look(partitioned(tmp_path / "disk.raw", root))

    assert findings["ssh-host-keys"].outcome is Outcome.FAIL
    assert all(text.text.isprintable() for text in findings.values())


def test_a_name_that_forges_a_listing_hides_nothing(tmp_path: Path) -> None:
    forged = "a\n/99/100644/0/0/innocent"
    files = CLEAN | {f"etc/ssh/{forged}": b"", "etc/ssh/ssh_host_rsa_key": b"x"}

    findings = look(partitioned(tmp_path / "disk.raw", ext4(tmp_path / "root.img", files)))

    assert findings["ssh-host-keys"].outcome is not Outcome.PASS


@pytest.mark.parametrize("what", ["btrfs", "lvm", "luks", "noise"])
def test_what_no_reader_knows_is_never_a_pass(tmp_path: Path, what: str) -> None:
    hidden = tmp_path / "hidden.img"
    run("truncate", "-s", 128 * MIB, hidden)
    if what == "btrfs":
        run("mkfs.btrfs", "-q", hidden)
    elif what == "lvm":
        label = b"LABELONE" + b"\x01" + bytes(7) + bytes(8) + b"LVM2 001"
        hidden.write_bytes(bytes(512) + label + bytes(4 * MIB))
    elif what == "luks":
        hidden.write_bytes(b"LUKS\xba\xbe\x00\x02" + bytes(4 * MIB))
    else:
        hidden.write_bytes(os.urandom(4 * MIB))
    boot = ext4(tmp_path / "boot.img", CLEAN)

    findings = look(partitioned(tmp_path / "disk.raw", boot, hidden))

    assert findings.pop("partition-table").outcome is Outcome.PASS
    assert outcomes(findings) == {"not-inspected"}, findings
    assert all("partition 2" in finding.text for finding in findings.values())


def test_what_hides_behind_128_partitions_is_never_a_pass(tmp_path: Path) -> None:
    many, start = 129, MIB
    root = ext4(tmp_path / "root.img", CLEAN)
    hidden = ext4(tmp_path / "hidden.img", CLEAN | {"etc/shadow": b"root:" + HASH + b":1::::::\n"})
    disk = tmp_path / "disk.raw"
    run("truncate", "-s", (many + 40) * MIB, disk)
    rows = ["label: gpt", "table-length: 136"]
    for number in range(1, many + 1):
        part = {1: root, many: hidden}.get(number)
        size_bytes = part.stat().st_size if part else MIB
        rows.append(f"start={start // 512}, size={size_bytes // 512}, type=L")
        if part:
            with disk.open("r+b") as file:
                file.seek(start)
                file.write(part.read_bytes())
        start += size_bytes
    run("sfdisk", "-q", disk, stdin="\n".join(rows) + "\n")

    findings = look(disk)

    assert findings.pop("partition-table").outcome is Outcome.FAIL
    assert outcomes(findings) == {"not-inspected"}, findings
    assert all("1 more partitions (not looked at)" in one.text for one in findings.values())


def test_a_file_system_that_wants_to_be_two_is_not_inspected(tmp_path: Path) -> None:
    root = ext4(tmp_path / "root.img", CLEAN)
    with root.open("r+b") as file:
        file.write(b"XFSB")

    findings = look(partitioned(tmp_path / "disk.raw", root))

    assert findings["shadow-passwords"].outcome is Outcome.NOT_INSPECTED
    assert "several at once: ext and xfs" in findings["shadow-passwords"].text


def test_a_journal_that_waits_to_be_replayed_is_no_pass(tmp_path: Path) -> None:
    root = ext4(tmp_path / "root.img", CLEAN)
    run("debugfs", "-w", "-R", "feature needs_recovery", root)

    findings = look(partitioned(tmp_path / "disk.raw", root))

    assert findings["authorized-keys"].outcome is Outcome.NOT_INSPECTED
    assert "journal" in findings["authorized-keys"].text


def test_a_damaged_file_system_is_no_pass(tmp_path: Path) -> None:
    root = ext4(tmp_path / "root.img", CLEAN)
    with root.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(2 * MIB))

    findings = look(partitioned(tmp_path / "disk.raw", root))

    assert findings["shadow-passwords"].outcome is Outcome.NOT_INSPECTED


def test_a_disk_without_partitions_and_one_with_lies(tmp_path: Path) -> None:
    root = ext4(tmp_path / "root.img", CLEAN)
    findings = look(root)
    assert findings["partition-table"] == Finding(Outcome.FAIL, "no partition table; the disk: ext")
    assert findings["shadow-passwords"].outcome is Outcome.PASS

    short = partitioned(tmp_path / "disk.raw", root)
    os.truncate(short, 8 * MIB)
    findings = look(short)
    assert findings["partition-table"].outcome is not Outcome.PASS
    assert findings["shadow-passwords"].outcome is not Outcome.PASS


def test_an_old_image_is_told_by_its_files_whatever_the_list_says(tmp_path: Path) -> None:
    disk = partitioned(tmp_path / "disk.raw", ext4(tmp_path / "root.img", CLEAN))

    age = (Age(),)
    assert look(disk, checks=age, max_age_s=3600)["age"].outcome is Outcome.PASS
    assert look(disk, checks=age, max_age_s=-2 * 86400)["age"].outcome is Outcome.FAIL
    long_ago = datetime.now(UTC) - timedelta(days=800)
    assert "stated to be made" in look(disk, checks=age, created=long_ago)["age"].text


def test_a_site_adds_checks_of_its_own(tmp_path: Path) -> None:
    disk = partitioned(tmp_path / "disk.raw", ext4(tmp_path / "root.img", CLEAN))
    folder = tmp_path / "checks.d"
    folder.mkdir()
    scripts = {
        "magic": """import json, sys
question = json.load(sys.stdin)
head = open(sys.argv[1], "rb").read(1024)
good = head[512:520] == b"EFI PART" and question["regions"][0]["content"] == "ext"
print(json.dumps({"outcome": "pass" if good else "fail", "text": "\\x1b[31m" + question["label"]}))
""",
        "nosy": "print(open('/etc/passwd').read())",
        "rude": "print('yes')",
        "slow": "import time; time.sleep(60)",
    }
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/usr/bin/python3\n{script}")
        (folder / name).chmod(0o755)
    (folder / "notes.txt").write_text("no check")
    for parent in (folder, *(p for p in folder.parents if "pytest-" in str(p))):
        parent.chmod(parent.stat().st_mode | 0o055)

    findings = look(disk, checks=site_checks(folder, limit_s=2))

    assert set(findings) == {"site-magic", "site-nosy", "site-rude", "site-slow"}
    assert findings["site-magic"] == Finding(Outcome.PASS, "\N{REPLACEMENT CHARACTER}[31mgpt")
    for name in ("site-nosy", "site-rude", "site-slow"):
        assert findings[name].outcome is Outcome.NOT_INSPECTED, name
