"""A farm's key is made and rotated; at each moment every node admits what any node shows."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distrib.errors import Conflict, NotFound, OperatorError, StorageFailed
from distrib.tsunami.farmkeys import FarmKeys, Stage
from distrib.tsunami.ssh import SshKeyRefused
from tests.tsunami.sshd import USER, Sshd

Start = Callable[[int], list[Sshd]]


def ask(*words: object, exits: int = 0) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words), "--json"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == exits, done.stdout + done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def bring(host: Sshd, admitted: Path) -> None:
    """What a deployment does on a node."""
    keys = ["--authorized-keys", host.keys_file]
    ask("agent", "--socket", "/run/x.sock", "serve-pieces", "--install", admitted, *keys)


def test_a_rotation_leaves_no_node_outside(sshds: Start, tmp_path: Path) -> None:
    hosts = sshds(2)
    place, in_use = tmp_path / "keys", tmp_path / "in-use"
    (tmp_path / "known").write_text("".join(host.known_hosts_line for host in hosts))
    (tmp_path / "hosts").write_text("".join(f"{USER}@{h.address}:{h.port}\n" for h in hosts))
    known = ("--known-hosts", tmp_path / "known")
    check = ("distrib", "tsunami", "keys", "check", place, "--hosts", tmp_path / "hosts", *known)
    rotate = ("distrib", "tsunami", "keys", "rotate", place)

    made = ask("distrib", "tsunami", "keys", "make", place)
    assert (made["stage"], len(made["fingerprints"])) == ("steady", 1)
    assert Path(made["identity"]).stat().st_mode & 0o777 == 0o600
    for host in hosts:
        bring(host, Path(made["admitted"]))
    assert ask(*check)["keys"] == ["farm"]
    shutil.copy(made["identity"], in_use)

    announced = ask(*rotate)
    assert (announced["stage"], len(announced["fingerprints"])) == ("announced", 2)
    bring(hosts[0], Path(announced["admitted"]))
    told = ask(*check, exits=8)
    assert [row["state"] for row in told["hosts"]] == ["admitted", "failed"]
    assert "does not admit next" in told["hosts"][1]["error"]["message"]
    bring(hosts[1], Path(announced["admitted"]))
    assert ask(*check)["keys"] == ["farm", "next"]

    switched = ask(*rotate)
    assert switched["stage"] == "switched"
    for host in hosts:
        for key in (in_use, Path(switched["identity"])):
            host.connect(key).close()

    steady = ask(*rotate)
    assert steady["fingerprints"] == announced["fingerprints"][1:]
    for host in hosts:
        bring(host, Path(steady["admitted"]))
        host.connect(Path(steady["identity"])).close()
        with pytest.raises(SshKeyRefused):
            host.connect(in_use)
    assert sorted(path.name for path in place.iterdir()) == ["admitted.pub", "farm"]


@pytest.mark.parametrize("writes", range(4))
def test_a_step_that_is_cut_short_is_repeated_and_never_shows_a_key_that_was_not_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    keys = FarmKeys(tmp_path / "keys")
    keys.make()
    (first,) = keys.fingerprints()
    left, rename = writes, Path.replace

    def replace(self: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device", str(target))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(StorageFailed, match="No space left"):
        for _ in range(3):
            keys.rotate()
    monkeypatch.undo()
    if keys.next.exists():
        assert len(keys.fingerprints()) == 2
    while keys.rotate() is not Stage.STEADY:
        assert len(keys.fingerprints()) == 2
    (last,) = keys.fingerprints()
    assert last != first
    keys.identities()


def test_what_is_there_is_not_made_again_and_what_is_not_is_not_rotated(tmp_path: Path) -> None:
    keys = FarmKeys(tmp_path / "keys")
    with pytest.raises(NotFound, match="no keys of a farm"):
        keys.rotate()
    keys.make()
    before = keys.farm.read_bytes()
    with pytest.raises(Conflict, match="is there already"):
        keys.make()
    assert keys.farm.read_bytes() == before
    for spoilt in ("", "x\n", "ssh-ed25519 AAAAA\n"):
        keys.admitted.write_text(spoilt)
        with pytest.raises(OperatorError, match=r"admitted\.pub: not a public key"):
            keys.fingerprints()


def test_a_seeder_admits_the_same_file(tmp_path: Path) -> None:
    keys, file = FarmKeys(tmp_path / "keys"), tmp_path / "authorized_keys"
    keys.make()
    keys.rotate()
    by_hand = "ssh-ed25519 AAAA müller@site".encode("latin-1")
    file.write_bytes(by_hand)
    serve = ("distrib", "serve-pieces", "--images", tmp_path, "--authorized-keys", file)
    assert ask(*serve, "--install", keys.admitted)["keys"] == 2
    assert ask(*serve, "--install", keys.admitted)["keys"] == 2
    kept, *lines = file.read_bytes().splitlines()
    ours = [line.decode() for line in lines]
    assert kept == by_hand
    command = f"{sys.executable} -I -m distrib serve-pieces --images {tmp_path}"
    assert [line.startswith(f'restrict,command="{command}" ssh-ed25519 ') for line in ours] == [
        True,
        True,
    ]
    link = tmp_path / "link"
    link.symlink_to(file)
    told = ask(*serve[:-1], link, "--install", keys.admitted, exits=2)
    assert "is a link" in told["error"]["message"]
    assert link.is_symlink()
