"""The command line against a real API: what a person sees, what a script gets."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distrib.cli.main import main
from distrib.db.models import Role
from distrib.printable import bytes_text, percent, printable
from tests.head.stories import LIST, WORKER, Endorser, Head, entry, image_bytes

Run = Callable[..., tuple[int, str, str]]
LINE = re.compile(r"distrib: .+\(.+\)\n")


@pytest.fixture
def run(
    served: Head,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Runs ``distrib ...`` as an admin of the served head: status, output, errors."""
    config = client_config(served, tmp_path)
    monkeypatch.setenv("DISTRIB_CONFIG", str(config))

    def run_one(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run_one


def client_config(head: Head, folder: Path, role: Role = Role.ADMIN) -> Path:
    """A settings file of a client."""
    token = folder / f"{role}.token"
    token.write_text(head.token(role) + "\n")
    config = folder / "client.toml"
    config.write_text(
        f'url = "{head.url}"\nca = "{head.ca_file}"\ntoken_file = "{token}"\n', encoding="utf-8"
    )
    return config


@pytest.fixture
def endorsed(tmp_path: Path, endorser: Endorser) -> tuple[Path, Path]:
    """An image file and the signed list that names it."""
    content = image_bytes()
    file, signed = tmp_path / "worker.img", tmp_path / "list.smime"
    file.write_bytes(content)
    signed.write_bytes(endorser.sign(entry(content)))
    return file, signed


def test_an_image_is_added_approved_and_named(
    run: Run, served: Head, endorsed: tuple[Path, Path]
) -> None:
    file, signed = endorsed
    status, out, err = run("image", "add", file, "--list", signed, "--alias", "ccin2p3")
    assert status == 0, err
    [image] = served.site_list().find("ccin2p3")
    assert out.startswith(f"{WORKER}@1.0.0 (ccin2p3) worker: approved\ninfo-hash {image.infohash}")
    assert "sending worker.img: 292.9 KiB of 292.9 KiB, 100 %" in err
    # The same once more is no error, and sends nothing.
    status, out, err = run("image", "add", file, "--list", signed, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["state"] == "approved"

    status, out, _ = run("image", "list")
    assert out.splitlines()[1].split()[:4] == [f"{WORKER}@1.0.0", "approved", "292.9", "KiB"]
    status, out, _ = run("image", "show", "ccin2p3")
    assert f"info-hash     {image.infohash}" in out
    assert run("image", "alias", "worker", "ccin2p3")[1] == f"worker is {WORKER}\n"
    assert run("image", "deny", "worker", "--reason", "old", "--json")[0] == 0
    assert served.site_list().images == ()
    actions = [row["action"] for row in json.loads(run("audit", "--json")[1])["audit"]]
    assert actions[:2] == ["site-list-published", "image-denied"]
    assert "image-denied" in run("audit")[1]


def test_the_torrent_made_offline_is_the_approved_one(
    run: Run, endorsed: tuple[Path, Path], tmp_path: Path
) -> None:
    file, signed = endorsed
    made = json.loads(run("image", "add", file, "--list", signed, "--json")[1])
    out = tmp_path / "worker.torrent"
    assert run("torrent", "create", file, "-o", out)[1] == made["infohash"] + "\n"
    document = json.loads(run("torrent", "create", file, "-o", out, "--json")[1])
    assert document["infohash"] == made["infohash"]
    assert document["pieces"] == -(-file.stat().st_size // document["piece_bytes"])
    assert run("torrent", "create", file, "-o", out, "--piece-size", 1000)[0] == 2
    assert run("torrent", "create", tmp_path / "none", "-o", out)[0] == 4


def test_a_refused_list_is_exit_3_with_the_reason(
    run: Run, endorsed: tuple[Path, Path], stranger: Endorser, tmp_path: Path
) -> None:
    file, _ = endorsed
    signed = tmp_path / "strange.smime"
    signed.write_bytes(stranger.sign(entry(file.read_bytes())))
    status, out, err = run("image", "add", file, "--list", signed)
    assert (status, out) == (3, "")
    assert "endorser-not-authorised" in err
    assert LINE.fullmatch(err.splitlines(keepends=True)[-1])
    status, out, err = run("image", "add", file, "--list", signed, "--json")
    assert status == 3
    assert json.loads(out)["error"]["reasons"][0]["code"] == "endorser-not-authorised"
    file.write_bytes(b"short")
    assert run("image", "add", file, "--list", endorsed[1], "--title", "worker")[0] == 3


def test_another_file_is_exit_3_and_says_what_differs(
    run: Run, endorsed: tuple[Path, Path]
) -> None:
    file, signed = endorsed
    file.write_bytes(image_bytes(9))
    status, _, err = run("image", "add", file, "--list", signed)
    assert status == 3
    assert f"SHA-512 differs from that of 'worker' 1.0.0 on the list {LIST}" in err
    status, out, _ = run("image", "add", file, "--list", signed, "--json")
    assert json.loads(out)["error"]["code"] == "digest-mismatch"


def test_a_wrong_list_or_alias_is_told_before_the_file_is_read(
    run: Run, endorsed: tuple[Path, Path], endorser: Endorser, tmp_path: Path
) -> None:
    file, signed = endorsed
    status, _, err = run("image", "add", file, "--list", file)
    assert (status, len(err.splitlines())) == (3, 1)
    assert "message-malformed" in err
    status, _, err = run("image", "add", file, "--list", signed, "--alias", "no/good")
    assert (status, len(err.splitlines())) == (2, 1)
    # Two reasons: each once, in a line of its own.
    faulty = tmp_path / "faulty.smime"
    faulty.write_bytes(endorser.sign(entry(b"x", **{"hv:size": -1, "sl:checksum:sha512": "00"})))
    status, _, err = run("image", "add", file, "--list", faulty)
    assert status == 3
    first, *reasons = err.splitlines()
    assert first.startswith(f"distrib: {faulty} refused (")
    assert len(set(reasons)) == len(reasons) == 2


def test_what_is_quarantined_waits_for_an_approval(
    run: Run, endorsed: tuple[Path, Path], served: Head
) -> None:
    file, signed = endorsed
    assert "quarantined" in run("image", "add", file, "--list", signed, "--no-approve")[1]
    status, _, _ = run("image", "approve", WORKER, "--user", "alice", "--alias", "w")
    assert status == 0
    assert served.site_list().images[0].audience == ("alice",)


FAILURES: list[tuple[tuple[str, ...], int]] = [
    (("image", "show", "nobody"), 4),
    (("image", "show", "no body"), 2),
    (("image", "nonsense"), 2),
    (("nonsense",), 2),
    (("image", "add", "/nowhere", "--list", "/nowhere"), 4),
    (("rollout", "start", "x", "--nodes", "all", "--timeout", "1"), 2),
    (("rollout", "status"), 4),
    (("rollout", "status", "r-404", "--watch"), 4),
    (("node", "add", "wn001", "--address", "wn001"), 2),
    (("token", "revoke", "nobody"), 4),
]


def test_a_failure_is_one_line_and_a_status(run: Run) -> None:
    for arguments, status in FAILURES:
        ended, out, err = run(*arguments)
        assert (ended, out) == (status, ""), arguments
        assert LINE.fullmatch(err), err
        ended, out, err = run(*arguments, "--json")
        assert (ended, err) == (status, ""), arguments
        error = json.loads(out)["error"]
        assert error["exit"] == status
        assert {"code", "message", "hint", "ids"} <= set(error)


def test_nobody_there_wrong_ca_and_no_token(
    run: Run, served: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTRIB_URL", "https://localhost:9")
    status, _, err = run("image", "list")
    assert status == 6
    assert LINE.fullmatch(err)
    monkeypatch.setenv("DISTRIB_URL", served.url)
    monkeypatch.setenv("DISTRIB_CA", str(served.pki.experiment.directory / "ca.pem"))
    status, _, err = run("image", "list")
    assert status == 6
    assert "set ca in client.toml" in err
    monkeypatch.delenv("DISTRIB_CA")
    monkeypatch.setenv("DISTRIB_TOKEN", "wrong")
    assert run("image", "list")[0] == 9
    monkeypatch.setenv("DISTRIB_CONFIG", str(tmp_path / "none.toml"))
    assert run("image", "list")[0] == 2


def test_nodes_endorsers_and_tokens(run: Run, endorser: Endorser) -> None:
    added = run("node", "add", "wn001", "--address", "127.0.0.2", "--rack", "R1", "--label", "g=1")
    assert added == (0, "node wn001 at 127.0.0.2\n", "")
    assert run("node", "list")[1].splitlines()[1].split() == [
        *("wn001", "127.0.0.2", "R1", "no", "0", "g=1")
    ]
    assert "rack     R1" in run("node", "show", "wn001")[1]
    assert run("node", "forget", "wn001")[1] == "node wn001 forgotten\n"
    assert run("node", "list")[1] == "no nodes\n"

    assert LIST in run("endorser", "list")[1]
    assert run("endorser", "add", "--dn", endorser.dn, "--ca", endorser.ca)[0] == 0
    again = run("endorser", "add", "--dn", endorser.dn, "--ca", endorser.ca)
    assert again == (0, f"endorser 2 already: {endorser.dn} for any list\n", "")
    assert run("endorser", "remove", 2)[1] == "endorser 2 removed\n"

    secret = run("token", "create", "ops", "--role", "operator")[1].strip()
    assert len(secret) > 40
    assert "ops" in run("token", "list")[1]
    assert run("token", "revoke", "ops")[1] == "token ops revoked\n"


def rollout(state: str, *rows: tuple[str, str, int]) -> dict[str, Any]:
    """A rollout of 1000 bytes a node: (node, state, bytes done)."""
    states = [row[1] for row in rows]
    return {
        "id": "r-1",
        "image": f"{WORKER}@1.0.0",
        "alias": "ccin2p3",
        "infohash": "a" * 64,
        "selector": "all",
        "state": state,
        "accepted_at": "2026-03-01T12:00:00.000Z",
        "ended_at": None,
        "summary": {name: states.count(name) for name in ("ready", "pulling", "waiting", "failed")}
        | {
            "targets": len(rows),
            "offline": 0,
            "bytes_done": sum(row[2] for row in rows),
            "bytes_total": 1000 * len(rows),
            "rate_bps": 0,
        },
        "nodes": [
            {
                "node": name,
                "online": True,
                "state": node_state,
                "bytes_done": done,
                "bytes_total": 1000,
                "rate_bps": 0,
                "reason": "no-space" if node_state == "failed" else None,
                "text": "\x1b[2Jquota" if node_state == "failed" else "",
                "since": "2026-03-01T12:00:01.000Z",
            }
            for name, node_state, done in rows
        ],
    }


def test_a_rollout_is_waited_for(run: Run, served: Head) -> None:
    served.rollouts.steps = [
        rollout("running", ("wn001", "pulling", 999), ("wn002", "waiting", 0)),
        rollout("running", ("wn001", "ready", 1000), ("wn002", "pulling", 500)),
        rollout("done", ("wn001", "ready", 1000), ("wn002", "ready", 1000)),
    ]
    status, out, _ = run(
        *("rollout", "start", "ccin2p3", "--nodes", "all", "--wait", "--download-mbit", "8")
    )
    assert status == 0
    # 999 of 1000 bytes are 99 %, and 100 % is what is ready.
    assert out.splitlines() == [
        "wn001 pulling 99 %",
        "wn002 waiting 0 %",
        "r-1 ccin2p3: running, 2 nodes (1 pulling, 1 waiting), 49 %",
        "wn001 ready 100 %",
        "wn002 pulling 50 %",
        "r-1 ccin2p3: running, 2 nodes (1 ready, 1 pulling), 75 %",
        "wn002 ready 100 %",
        "r-1 ccin2p3: done, 2 nodes (2 ready), 100 %",
    ]
    assert served.rollouts.requests[0]["download_bps"] == 1_000_000
    assert served.rollouts.requests[0]["actor"] == "admin"


def test_some_nodes_fail(run: Run, served: Head) -> None:
    served.rollouts.steps = [
        rollout("failed", ("wn001", "ready", 1000), ("wn002", "failed", 10)),
    ]
    status, out, err = run("rollout", "status", "--watch")
    assert status == 8
    assert "wn002 failed 1 % no-space: \N{REPLACEMENT CHARACTER}[2Jquota" in out
    assert "1 of 2 nodes failed, 1 are ready (no-space)" in err
    status, out, _ = run("rollout", "start", "x", "--nodes", "all", "--wait", "--json")
    document = json.loads(out)
    assert status == 8
    assert (document["state"], document["error"]["code"]) == ("failed", "partial")
    # Looking is no failure.
    assert run("rollout", "status", "r-1")[0] == 0
    assert "1/2" in run("rollout", "list")[1]
    assert "aborted" in run("rollout", "abort", "r-1")[1]
    assert served.rollouts.aborted == ["r-1"]


def test_waiting_ends_in_time(run: Run, served: Head) -> None:
    served.rollouts.steps = [rollout("running", ("wn001", "pulling", 1))]
    status, _, err = run(*("rollout", "start", "x", "--nodes", "all", "--wait", "--timeout", "0.3"))
    assert status == 7
    assert "rollout status r-1 --watch" in err


def test_nothing_from_data_moves_the_cursor() -> None:
    assert printable("a\x1b[31m\n\u202eb\x9bc") == "a\ufffd[31m\ufffd\ufffdb\ufffdc"
    assert printable("Zürich ✓") == "Zürich ✓"
    assert percent(999, 1000) == 99
    assert percent(1000, 1000) == 99
    assert percent(1, 0) == 0
    assert percent(1, 1000, complete=True) == 100
    assert [bytes_text(n) for n in (0, 1023, 1 << 20, (1 << 30) - 1)] == [
        *("0 B", "1023 B", "1.0 MiB", "1023.9 MiB")
    ]


def start(*arguments: str, env: dict[str, str], **options: Any) -> subprocess.Popen[str]:
    """The command as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "distrib.cli.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | env,
        **options,
    )


def test_help_is_quick_and_imports_no_service() -> None:
    code = (
        "import sys; from distrib.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20
    )
    assert "rollout" in done.stdout
    for heavy in ("httpx", "pydantic", "sqlalchemy", "fastapi", "libtorrent", "rich"):
        assert f"'{heavy}'" not in done.stdout


def test_ctrl_c_is_quiet(served: Head, tmp_path: Path) -> None:
    served.rollouts.steps = [rollout("running", ("wn001", "pulling", 1))]
    env = {"DISTRIB_CONFIG": str(client_config(served, tmp_path))}
    with start("rollout", "status", "r-1", "--watch", env=env) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "wn001 pulling 0 %\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (130, "")


def test_a_reader_that_has_had_enough_is_no_error(served: Head, tmp_path: Path) -> None:
    env = {"DISTRIB_CONFIG": str(client_config(served, tmp_path))}
    with start("token", "list", env=env) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.wait(10)
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_a_bug_is_one_line_and_a_file_with_the_traceback(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_arguments: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("distrib.cli.audit.connected", broken)
    status, _, err = run("audit")
    assert status == 1
    assert LINE.fullmatch(err)
    assert "unexpected ZeroDivisionError: oops" in err
    assert "Traceback" in (tmp_path / "distrib" / "distrib-error.log").read_text()
    monkeypatch.setenv("DISTRIB_DEBUG", "1")
    assert "Traceback" in run("audit")[2]


def test_version(run: Run) -> None:
    assert re.fullmatch(r"distrib \d+\.\d+\.\d+\n", run("--version")[1])
