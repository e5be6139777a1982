"""`distrib swarm show` and `torrent export` on a real farm; a foreign client completes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import libtorrent as lt
import pytest

from tests.farm.farm import Farm, farm_on_loopback
from tests.farm.process import CommandFailed, eventually

SIZE = 3 << 20


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
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
    session = lt.session({"listen_interfaces": "127.0.9.77:6999"})
    params = lt.load_torrent_file(str(file))
    assert params.info_hashes.v2.to_bytes().hex() == made["infohash"]
    params.save_path = str(tmp_path)
    handle = session.add_torrent(params)
    handle.connect_peer((peer["address"], peer["port"]))
    eventually("the foreign client has it", lambda: handle.status().is_seeding, limit_s=20)
    got = (tmp_path / "image.raw").read_bytes()
    assert hashlib.sha512(got).hexdigest() == hashlib.sha512(image.file.read_bytes()).hexdigest()


def test_a_torrent_cannot_be_exported_to_a_place_that_is_none(farm: Farm, tmp_path: Path) -> None:
    farm.publish(1 << 20, alias="nowhere")
    with pytest.raises(CommandFailed) as caught:
        farm.ask("torrent", "export", "nowhere", "-o", str(tmp_path / "no" / "torrent"))
    assert caught.value.status == 2
    assert json.loads(caught.value.out)["error"]["hint"] == "check -o"
