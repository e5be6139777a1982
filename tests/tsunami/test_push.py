"""A file is pushed to hosts that have only an sshd."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.tsunami.sshd import USER, Sshd

MIB = 1 << 20
SIZE = 24 * MIB + 12345

DISTRIB = (sys.executable, "-m", "distrib")

Start = Callable[[int], list[Sshd]]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "image.raw"
    file.write_bytes(os.urandom(SIZE))
    return file


def arguments(hosts: list[Sshd], image: Path, key: Path, *more: str) -> list[str]:
    """Of `distrib`, for the same path below each host's own directory: the same for all."""
    place = image.parent
    (place / "known").write_text("".join(host.known_hosts_line for host in hosts))
    lines = [f"{USER}@{host.address}:{host.port}\n" for host in hosts]
    (place / "hosts").write_text("".join(lines))
    return [
        "tsunami",
        more[0],
        str(image),
        *("--hosts", str(place / "hosts"), "--known-hosts", str(place / "known")),
        *("--identity", str(key), "--chunk-mib", "1", *more[1:]),
    ]


def distrib(*arguments: str, check: bool = True) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [*DISTRIB, *arguments, "--json"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert not check or done.returncode in (0, 8), done.stdout + done.stderr
    return done.returncode, json.loads(done.stdout)


def sha512(file: Path) -> str:
    return hashlib.sha512(file.read_bytes()).hexdigest()


def left_behind(host: Sshd) -> list[str]:
    """What a push should not leave: directories of its own, lines in authorized_keys."""
    places = [str(path) for path in host.files.glob(".distrib-push-*")]
    lines = [line for line in host.keys_file.read_text().splitlines() if "distrib-push" in line]
    return places + lines


def test_hosts_feed_each_other_and_are_left_clean(sshds: Start, image: Path, key: Path) -> None:
    hosts = sshds(4)
    to = hosts[0].srv / "image.raw"
    status, told = distrib(*arguments(hosts, image, key, "push", "--to", str(to)))
    assert status == 0
    assert [sha512(host.files / "image.raw") for host in hosts] == [sha512(image)] * 4
    assert [row["state"] for row in told["hosts"]] == ["done"] * 4
    assert told["origin_bytes"] < 4 * SIZE
    assert sum(row["served_bytes"] for row in told["hosts"]) + told["origin_bytes"] == 4 * SIZE
    assert [left_behind(host) for host in hosts] == [[]] * 4


def test_one_is_dead_and_one_sends_wrong_bytes(sshds: Start, image: Path, key: Path) -> None:
    hosts = sshds(4)
    dead, liar = hosts[1], hosts[2]
    dead.stop()
    liar.stop()
    # What it reads for others is wrong; what it keeps itself is right.
    programs = liar.directory / "bin"
    programs.mkdir()
    (programs / "dd").write_text(
        "#!/bin/sh\ncase ${SSH_ORIGINAL_COMMAND-} in\n"
        "get*) /usr/bin/dd \"$@\" | tr 'a-m' 'n-z' ;;\n"
        '*) exec /usr/bin/dd "$@" ;;\nesac\n'
    )
    (programs / "dd").chmod(0o755)
    liar.environment = (f"PATH={programs}:/usr/bin:/bin",)
    liar.start()
    to = hosts[0].srv / "image.raw"
    # It has some chunks before anybody else has: with one slot each, it must feed one of them.
    interrupted(liar, [*DISTRIB, *arguments([liar], image, key, "push", "--to", str(to))])
    words = arguments(hosts, image, key, "push", "--to", str(to), "--slots", "1")
    status, told = distrib(*words)
    assert status == 8
    states = [row["state"] for row in told["hosts"]]
    assert states == ["done", "failed", "done", "done"]
    assert told["hosts"][1]["error"]["code"] == "unreachable"
    alive = [hosts[0], hosts[2], hosts[3]]
    assert [sha512(host.files / "image.raw") for host in alive] == [sha512(image)] * 3
    assert [row["host"] for row in told["set_aside"]] == [f"{liar.address}:{liar.port}"]
    assert "wrong bytes" in told["set_aside"][0]["reason"]
    assert [left_behind(host) for host in alive] == [[]] * 3


def test_interrupted_it_goes_on_where_it_was(sshds: Start, image: Path, key: Path) -> None:
    (host,) = sshds(1)
    words = arguments([host], image, key, "push", "--to", str(host.srv / "image.raw"))
    have = interrupted(host, [*DISTRIB, *words])
    left = left_behind(host)
    assert left == [str(have.parent)], "the partial file stays, the key's line is gone"
    assert not (have.parent / "key").exists()
    assert not (host.files / "image.raw").exists()
    status, told = distrib(*words)
    assert status == 0
    assert 0 < told["hosts"][0]["resumed_bytes"] < SIZE
    assert told["origin_bytes"] == SIZE - told["hosts"][0]["resumed_bytes"]
    assert sha512(host.files / "image.raw") == sha512(image)
    assert left_behind(host) == []


def interrupted(
    host: Sshd, command: list[str], environment: Mapping[str, str] | None = None
) -> Path:
    """Push until the host has some chunks, then Ctrl-C; where they are."""
    slow = [*command, "--slots", "1"]
    with subprocess.Popen(slow, stderr=subprocess.DEVNULL, env=environment) as pushing:
        have = _eventually_some(host)
        pushing.send_signal(signal.SIGINT)
        assert pushing.wait(60) == 130
    return have


def _eventually_some(host: Sshd) -> Path:
    """The directory of verified chunks, once it holds some."""
    while True:
        with contextlib.suppress(FileNotFoundError):  # begun anew just now
            found = list(host.files.glob(".distrib-push-*/have/*"))
            if len(found) > 2:
                return found[0].parent


def test_clean_removes_what_is_left(sshds: Start, image: Path, key: Path) -> None:
    (host,) = sshds(1)
    words = arguments([host], image, key, "push", "--to", str(host.srv / "image.raw"))
    with subprocess.Popen(
        [sys.executable, "-m", "distrib", *words, "--slots", "1"], stderr=subprocess.DEVNULL
    ) as pushing:
        _eventually_some(host)
        pushing.kill()
    status, told = distrib("tsunami", "clean", *words[2:])
    assert (status, told["hosts"][0]["state"]) == (0, "clean")
    assert left_behind(host) == []


def test_a_host_with_another_key_is_not_spoken_to(sshds: Start, image: Path, key: Path) -> None:
    right, wrong = sshds(2)
    words = arguments([right, wrong], image, key, "push", "--to", str(right.srv / "image.raw"))
    known = image.parent / "known"
    known.write_text(known.read_text().replace(wrong.host_key, right.host_key))
    status, told = distrib(*words)
    assert status == 8
    assert [row["state"] for row in told["hosts"]] == ["done", "failed"]
    assert told["hosts"][1]["error"]["code"] == "host-key-refused"
    assert list(wrong.files.iterdir()) == []


def test_who_is_not_done_at_the_deadline_has_failed_and_is_not_waited_for(
    sshds: Start, image: Path, key: Path
) -> None:
    (host,) = sshds(1)
    assert host.process is not None
    # The kernel connects; nobody ever answers.
    host.process.send_signal(signal.SIGSTOP)
    words = arguments([host], image, key, "push", "--to", str(host.srv / "image.raw"))
    status, told = distrib(*words, "--deadline", "1")
    assert (status, told["hosts"][0]["error"]["code"]) == (8, "timed-out")
    assert "deadline" in told["hosts"][0]["error"]["message"]
    assert told["seconds"] < 10


def test_the_key_of_a_push_reads_verified_chunks_and_nothing_else(
    sshds: Start, image: Path, key: Path, tmp_path: Path
) -> None:
    """While a push runs, its key is on every host: what can somebody do who has it?"""
    (host,) = sshds(1)
    words = arguments([host], image, key, "push", "--to", str(host.srv / "image.raw"))
    with subprocess.Popen(
        [sys.executable, "-m", "distrib", *words, "--slots", "1"], stderr=subprocess.DEVNULL
    ) as pushing:
        have = _eventually_some(host)
        stolen = tmp_path / "stolen"
        stolen.write_text((have.parent / "key").read_text())
        stolen.chmod(0o600)
        number = int(next(have.iterdir()).name)
        pushing.send_signal(signal.SIGSTOP)
        with host.connect(stolen) as thief:
            status, _ = thief.output("id")
            assert status == 65
            for asked in ("get", "get -1", "get ../key", "get 99999999999", "get 1;id", "put 1 x"):
                assert thief.output(asked)[0] == 65
            assert thief.output(f"get {number}; id")[0] == 65
            stream = thief.run(f"get {number}")
            got = b"".join(iter(stream.read, b""))
            assert got == image.read_bytes()[number * MIB : (number + 1) * MIB]
        pushing.send_signal(signal.SIGCONT)
        assert pushing.wait(60) == 0
    assert left_behind(host) == []


def test_a_disk_that_changes_what_it_holds_is_named(
    sshds: Start, image: Path, key: Path, tmp_path: Path
) -> None:
    (host,) = sshds(1)
    tool = host.directory / "bin" / "sha512sum"
    tool.parent.mkdir()
    # The whole is always wrong there, whatever the chunks say.
    tool.write_text(
        '#!/bin/sh\ndata=$(mktemp); cat >"$data"; s=$(wc -c <"$data")\n'
        f'[ "$s" -ne {SIZE} ] || echo x >>"$data"\n'
        '/usr/bin/sha512sum <"$data"; rm -f "$data"\n'
    )
    tool.chmod(0o755)
    host.stop()
    host.environment = (f"PATH={tool.parent}:/usr/bin:/bin",)
    host.start()
    words = arguments([host], image, key, "push", "--to", str(host.srv / "image.raw"))
    status, told = distrib(*words)
    assert status == 8
    assert told["hosts"][0]["error"]["code"] == "digest-mismatch"
    assert not (host.files / "image.raw").exists()


@pytest.mark.parametrize(
    ("source", "says"), [("none.raw", "no such file"), ("x" * 300, "File name too long")]
)
def test_a_file_that_cannot_be_read_is_told_in_a_line(
    tmp_path: Path, key: Path, source: str, says: str
) -> None:
    for name in ("known", "hosts"):
        (tmp_path / name).write_text("" if name == "known" else "wn001\n")
    files = ["--hosts", f"{tmp_path}/hosts", "--known-hosts", f"{tmp_path}/known"]
    options = [*files, "--identity", str(key), "--to", "/srv/image.raw"]
    exits, told = distrib("tsunami", "push", f"{tmp_path}/{source}", *options, check=False)
    assert exits == 4
    assert told["error"]["message"].endswith(says)


def test_a_directory_is_not_taken_for_the_file(sshds: Start, image: Path, key: Path) -> None:
    (host,) = sshds(1)
    status, told = distrib(*arguments([host], image, key, "push", "--to", str(host.srv)))
    assert status == 8
    assert "is a directory" in told["hosts"][0]["error"]["message"]
    assert list(host.files.iterdir()) == []
