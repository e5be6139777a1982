"""Hostile names: whatever ends in a path, a topic or on a terminal, chosen by who means it.

What a handler of events is told is in tests/events/test_delivery.py, names within an image in
tests/intake/test_checks.py.
"""

from __future__ import annotations

import io
import json
import logging
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from agent.cli.leases import leases as leases_command
from distrib import logs
from distrib.bus.topics import Topics, is_node_name
from distrib.catalogue.store import ImageStore
from distrib.cli.main import main
from distrib.errors import DistribError
from distrib.trust.imagelist import ImageListInvalid, parse_image_list
from distrib.trust.siteimage import check_alias
from distrib.trust.sitelist import parse_image_ref
from distrib.trust.testpki import check_node_name
from tests.head.stories import WORKER, Endorser, Head, entry, image_bytes
from tests.head.test_commands import client_config
from tests.trust.conftest import World

CLIMBING = [
    "..",
    ".",
    "../../etc/passwd",
    "/etc/passwd",
    "a/../b",
    "a\\..\\b",
    "%2e%2e%2f",
    "a\x00b",
    "-rf",
    "~root",
    "a\nb",
    "\u2024\u2024/x",
    "\uff0e\uff0e\uff0f",
    "",
    " ",
    "x" * 5000,
    "+/#",
    "#",
    "+",
    "$SYS/x",
]


@pytest.mark.parametrize("name", CLIMBING, ids=lambda name: ascii(name)[:20])
def test_names_that_lead_elsewhere_are_none(name: str) -> None:
    refusing: dict[str, Callable[[str], object]] = {
        "an alias": check_alias,
        "an image": parse_image_ref,
        "a node's certificate": check_node_name,
        "the topic of a torrent": Topics().torrent,
        "the topic of a node": lambda text: Topics().node(text, "desired"),
    }
    for what, read in refusing.items():
        with pytest.raises((DistribError, ValueError)):
            read(name)
        assert not is_node_name(name), what
    for leaf in ("presence", "report", "event"):
        assert Topics().parse_node(f"distrib/v1/node/{name}/{leaf}") is None
    assert Topics().parse_seeder(f"distrib/v1/seeder/{name}/presence") is None


@pytest.mark.parametrize("name", CLIMBING, ids=lambda name: ascii(name)[:20])
def test_a_version_stays_in_the_folder_that_is_its_own(tmp_path: Path, name: str) -> None:
    store = ImageStore(tmp_path)
    folder = store.quarantine_dir(WORKER, name)
    assert folder.parent == store.quarantine
    assert folder.resolve().parent == store.quarantine.resolve()
    assert folder.name.startswith(f"{WORKER}@")
    assert not set(folder.name) & set("/\\\x00\n")


@pytest.mark.parametrize("name", CLIMBING, ids=lambda name: ascii(name)[:20])
def test_identifiers_and_hashes_in_a_list_are_what_they_should_be(world: World, name: str) -> None:
    plain = world.content()
    for old in (b"0d4b3b8e-54f0-4a53-8a6e-0a4f1a6a2c01", b"7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f6c11",
                b"cf83e135" * 16):  # fmt: skip
        assert old in plain
        with pytest.raises(ImageListInvalid):
            parse_image_list(plain.replace(old, json.dumps(name)[1:-1].encode()))


# -- what people see

SPEAKING = {
    "colour": "\x1b[31m",
    "window title": "\x1b]0;pwned\x07",
    "C1": "\x9b31m",
    "another line": "\nadmin: approved",
    "carriage return": "\rall is well",
    "line separator": "\u2028approved",
    "reversed": "\u202egnp.exe",
    "isolate": "\u2066x\u2069",
    "zero width": "a\u200bb",
    "byte order mark": "\ufeff",
    "tag characters": "\U000e0041",
    "private use": "\ue000",
}
UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
SILENT = {name: text for name, text in SPEAKING.items() if name in {
    "line separator", "reversed", "isolate", "zero width", "byte order mark", "tag characters",
    "private use",
}}  # fmt: skip
EVIL = "evil" + "".join(SILENT.values())


def assert_harmless(text: str) -> None:
    found = {char for char in text if unicodedata.category(char) in UNSAFE and char != "\n"}
    assert not found, ascii(text)


def test_control_characters_do_not_get_into_a_list(world: World) -> None:
    for name in set(SPEAKING) - set(SILENT):
        text = json.dumps(SPEAKING[name])[1:-1].encode()
        with pytest.raises(ImageListInvalid, match="control characters"):
            parse_image_list(world.content().replace(b"Experiment images", text))


@pytest.fixture
def run(
    served: Head,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """``distrib ...`` as an admin of the head; what was printed, on both streams."""
    monkeypatch.setenv("DISTRIB_CONFIG", str(client_config(served, tmp_path)))

    def run_one(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main(list(arguments))
        out, err = capsys.readouterr()
        return out + err

    return run_one


def test_a_title_cannot_speak_to_the_terminal_of_any_command(
    run: Callable[..., str], served: Head, endorser: Endorser, tmp_path: Path
) -> None:
    content = image_bytes()
    file, signed = tmp_path / "worker.img", tmp_path / "list.smime"
    file.write_bytes(content)
    hostile = entry(content, title=EVIL, **{
        "dc:description": EVIL, "hv:hypervisor": EVIL, "sl:os": EVIL, "sl:arch": EVIL,
        "sl:comments": EVIL, "ad:vo": EVIL, EVIL: EVIL,
    })  # fmt: skip
    signed.write_bytes(endorser.sign(hostile))
    reason = "because" + "".join(SPEAKING.values())
    shown = [
        run("image", "add", str(file), "--list", str(signed)),
        run("image", "list"),
        run("image", "show", WORKER),
        run("image", "history", WORKER),
        run("image", "deny", WORKER, "--reason", reason),
        run("image", "show", WORKER),
        run("image", "history", WORKER),
        run("image", "approve", WORKER),
        run("image", "undeny", WORKER, "--reason", reason),
        run("image", "list"),
        run("image", "where-running", WORKER),
        run("list", "verify", str(signed)),
        run("list", "show"),
        run("endorser", "list"),
        run("event", "list"),
        run("event", "show", "1"),
        run("audit"),
    ]
    for text in shown:
        assert text.strip()
        assert_harmless(text)
    assert any("evil\N{REPLACEMENT CHARACTER}" in text for text in shown)
    assert any("because\N{REPLACEMENT CHARACTER}" in text for text in shown)
    # A line of an attacker's would stand at the left.
    lines = "".join(shown).split("\n")
    assert not [line for line in lines if line.startswith(("admin: approved", "all is well"))]


def test_what_is_asked_for_cannot_speak_either(run: Callable[..., str]) -> None:
    evil = "x" + "".join(SPEAKING.values()).replace("\n", "\\n")
    for arguments in (
        ("image", "show", evil),
        ("image", "alias", evil, WORKER),
        ("node", "show", evil),
        ("node", "add", evil, "--address", "127.0.0.2"),
        ("rollout", "status", evil),
        ("list", "verify", evil),
        (evil,),
        ("image", evil),
        ("image", "list", f"--{evil}"),
    ):
        text = run(*arguments)
        assert text.strip()
        assert_harmless(text)


class Terminal(io.StringIO):
    """A standard error that people look at."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    made, root = Terminal(), logging.getLogger()
    before = (root.handlers, root.level)
    monkeypatch.setattr(sys, "stderr", made)
    logs.configure()
    yield made
    root.handlers, root.level = before[0], before[1]
    structlog.reset_defaults()


def test_the_log_on_a_terminal_is_one_line_whatever_is_in_it(terminal: Terminal) -> None:
    """The path of a request is whatever somebody without a token sent."""
    log = structlog.get_logger("attack")
    for text in SPEAKING.values():
        log.info("api-call", path=f"/api/{text}", titles=[text], more={"title": text})
        logging.getLogger("library").warning("it said %s", text)
    lines = terminal.getvalue().splitlines()
    assert len(lines) == 2 * len(SPEAKING)
    dull = structlog.dev.ConsoleRenderer.get_default_level_styles()
    own = {*dull.values(), "\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[35m", "\x1b[36m", "\x1b[34m"}
    for line in lines:
        bare = line
        for colour in sorted(own, key=len, reverse=True):
            bare = bare.replace(colour, "")
        assert_harmless(bare)


def test_the_log_of_a_service_is_one_json_line_whatever_is_in_it(tmp_path: Path) -> None:
    root = logging.getLogger()
    before = (root.handlers, root.level)
    file = tmp_path / "log"
    logs.configure(file=file)
    try:
        structlog.get_logger("attack").info("api-call", path="".join(SPEAKING.values()))
    finally:
        for handler in root.handlers:
            handler.stream.close()  # type: ignore[attr-defined]
        root.handlers, root.level = before[0], before[1]
        structlog.reset_defaults()
    [line] = file.read_bytes().splitlines()
    assert line.isascii()
    assert json.loads(line)["path"] == "".join(SPEAKING.values())
    assert_harmless(line.decode())


def test_what_the_agent_says_of_a_lease(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The user's name comes from a directory that others write."""
    evil = "x" + "".join(SPEAKING.values())
    told: dict[str, Any] = defaultdict(lambda: None)
    told.update(dict.fromkeys(("lease", "image", "user", "since", "device"), evil))
    monkeypatch.setattr("agent.cli.leases.ask", lambda *_args, **_more: {"leases": [told]})
    leases_command.main([], obj=Path("/none"), standalone_mode=False)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert_harmless(out)
