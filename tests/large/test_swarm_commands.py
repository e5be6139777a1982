"""`distrib swarm show` and `torrent export` on a real farm; a foreign client completes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import libtorrent as lt
import pytest

from tests.farm.farm import Farm, farm_on_loopback
from tests.farm.process import BIN, CommandFailed, eventually

SIZE = 3 << 20
ALLOWED, STRANGER = "127.0.9.77", "127.0.9.78"


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    with pytest.MonkeyPatch.context() as patched:
        # The operator allows one network outside of the farm; his settings reach the controller.
        patched.setenv("DISTRIB_CONTROLLER_FARM__FOREIGN", json.dumps([ALLOWED]))
        yield from _running(tmp_path_factory)


def _running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    with farm_on_loopback(tmp_path_factory.mktemp("farm"), 2) as running:
        yield running


def test_the_tree_of_a_rollout_and_of_a_node_that_went(farm: Farm) -> None:
    image = farm.publish(SIZE, alias="drawn")
    for node in farm.nodes.values():
        node.start()
    farm.ask("rollout", "start", "drawn", "--nodes=all", "--wait")
    watched = farm.distrib("swarm", "show", "drawn", "--watch").splitlines()
    assert watched[-1].startswith("drawn: 2 nodes (2 ready), 100 %")
    shown = farm.ask("swarm", "show", "drawn")
    assert shown["image"] == f"{image.identifier}@{image.version}"
    assert [one["has_image"] for one in shown["seeders"]] == [True]
    # Nobody has said what its link carries: one line of nodes begins there, not ten.
    assert [one["link_bps"] for one in shown["seeders"]] == [0]
    assert {row["state"] for row in shown["nodes"]} == {"ready"}
    assert shown["summary"]["stalls"] == {}

    stopped = farm.nodes["wn2"]
    stopped.stop()
    eventually("wn2 is gone", lambda: farm.ask("swarm", "show", "drawn")["summary"]["offline"])
    drawn = farm.distrib("swarm", "show", "drawn")
    assert "wn2 [R1] offline (ready)" in drawn
    with pytest.raises(CommandFailed) as caught:
        farm.distrib("swarm", "show", "no-such-image")
    assert caught.value.status == 4


def on_a_terminal(
    farm: Farm, *arguments: str, rows: int, enough: Callable[[str], bool], then: Callable[[], None]
) -> str:
    """``distrib ARGUMENTS`` on a pseudo terminal; all that it wrote. Fails where it fails.

    ``then`` is done once what was written is ``enough``."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 120, 0, 0))
    child = subprocess.Popen(
        [str(BIN / "distrib"), *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={key: value for key, value in os.environ.items() if key not in {"LINES", "COLUMNS"}}
        | {"DISTRIB_CONFIG": str(farm.state / "client.toml"), "TERM": "xterm"},
    )
    os.close(theirs)
    written, waits = b"", True
    # The end of a pseudo terminal that nobody holds any more is an error (EIO).
    with contextlib.suppress(OSError):
        while piece := os.read(ours, 4096):
            written += piece
            if waits and enough(written.decode(errors="replace")):
                waits = False
                then()
    os.close(ours)
    assert child.wait(30) == 0, written
    return written.decode()


def test_a_terminal_shows_the_tree_over_itself_until_all_have_the_image(farm: Farm) -> None:
    for node in farm.nodes.values():
        if node.agent is None or not node.agent.running:
            node.start()
    farm.publish(SIZE, alias="live")
    started = farm.ask("rollout", "start", "live", "--nodes=all", "--download-mbit=0.5")
    farm.distrib("swarm", "caps", "--elsewhere", "400/0")
    told = farm.distrib("rollout", "status", started["id"]).splitlines()
    farm.distrib("swarm", "caps", "--elsewhere", "default")
    assert "download ≤ 0.5 Mbit/s a node" in told[0]
    assert told[1] == "caps of the site, a node: elsewhere download ≤ 400 Mbit/s"
    up, uncapped = "\x1b[1A", ("--rollout", started["id"], "--download-mbit=0")
    shown = on_a_terminal(
        farm,
        *("swarm", "show", "live", "--watch", "--every=0.2"),
        rows=5,
        enough=lambda written: written.count(up) > 3,
        then=lambda: print(farm.distrib("swarm", "caps", *uncapped)),
    )
    pictures = shown.split(up)
    assert len(pictures) > 3
    assert "pulling" in pictures[0]
    assert any("… and " in picture for picture in pictures)
    assert "(2 ready), 100 %" in shown.rpartition("live: ")[2]
    # The cursor, which is hidden meanwhile, is back.
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_a_foreign_client_completes_from_an_exported_torrent(farm: Farm, tmp_path: Path) -> None:
    """libtorrent with its own settings: DHT, PEX, uTP, encryption as they come; no tracker."""
    image = farm.publish(SIZE, alias="exported")
    file = tmp_path / "exported.torrent"
    made = eventually(
        "it is seeded",
        lambda: (
            (found := farm.ask("torrent", "export", "exported", "-o", str(file)))["peers"] and found
        ),
    )
    lines = farm.distrib("torrent", "export", "exported", "-o", str(file)).splitlines()
    (peer,) = made["peers"]
    assert lines == [
        made["infohash"],
        f"peer {peer['address']}:{peer['port']} ({peer['node']})",
    ]
    params = lt.load_torrent_file(str(file))
    assert params.info_hashes.v2.to_bytes().hex() == made["infohash"]
    clients = {address: _client(file, address, tmp_path, peer) for address in (ALLOWED, STRANGER)}
    allowed, stranger = (clients[address][1] for address in (ALLOWED, STRANGER))
    eventually("the foreign client has it", lambda: allowed.status().is_seeding, limit_s=20)
    # Its last pieces may still be in its cache.
    allowed.flush_cache()
    meant = hashlib.sha512(image.file.read_bytes()).digest()
    file_of = tmp_path / ALLOWED / "image.raw"
    eventually(
        "its file is the image", lambda: hashlib.sha512(file_of.read_bytes()).digest() == meant
    )
    assert stranger.status().total_payload_download == 0


def _client(
    file: Path, address: str, directory: Path, peer: dict[str, object]
) -> tuple[lt.session, lt.torrent_handle]:
    session = lt.session({"listen_interfaces": f"{address}:6999", "outgoing_interfaces": address})
    params = lt.load_torrent_file(str(file))
    params.save_path = str(directory / address)
    handle = session.add_torrent(params)
    handle.connect_peer((str(peer["address"]), int(str(peer["port"]))))
    return session, handle


def test_a_torrent_cannot_be_exported_to_a_place_that_is_none(farm: Farm, tmp_path: Path) -> None:
    farm.publish(1 << 20, alias="nowhere")
    with pytest.raises(CommandFailed) as caught:
        farm.ask("torrent", "export", "nowhere", "-o", str(tmp_path / "no" / "torrent"))
    assert caught.value.status == 2
    assert json.loads(caught.value.out)["error"]["hint"] == "check -o"
