"""Somebody on the bus or in the swarm lies: nodes keep what holds, say so, and name who."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from agent.socket.client import ask
from distrib.swarm.torrent import info_of, make_torrent
from distrib.trust.signature import open_smime, sign_smime
from distrib.trust.sitelist import SiteList, parse_site_list, render_site_list
from tests.farm.bystander import retain, retained
from tests.farm.farm import Farm, Node
from tests.farm.process import CommandFailed, command, eventually
from tests.stories.test_rollout import MIB, seeder_of, sha256, start, wait

pytestmark = pytest.mark.timeout(240)


def report(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = ask(node.socket, "status")["report"]
    return found


def signed_by_catalogue(farm: Farm, site_list: SiteList) -> bytes:
    stem = farm.pki / "site" / "certs" / "catalogue"
    certificate = x509.load_pem_x509_certificate(stem.with_suffix(".pem").read_bytes())
    key = load_pem_private_key(stem.with_suffix(".key").read_bytes(), None)
    return sign_smime(render_site_list(site_list), certificate, key)


@pytest.fixture(scope="module")
def watcher(farm: Farm) -> str:
    """Somebody who may read what nodes read. The broker knows clients by their certificates: who
    connects by a node's own takes its connection away."""
    site = str(farm.pki / "site")
    command(["distrib", "testpki", "issue", site, "--role", "node", "--name", "watcher"])
    return "watcher"


def test_forged_expired_and_old_site_lists_are_refused_each_with_its_code(
    farm: Farm, watcher: str
) -> None:
    image = farm.publish(2 * MIB, alias="believed")
    node = farm.nodes["wn1"]
    genuine = retained(farm, watcher, "site-list")
    current = parse_site_list(open_smime(genuine).content)
    eventually("the node follows", lambda: report(node)["site_list_version"] == current.version)
    now = datetime.now(UTC)
    newer = replace(current, version=str(int(current.version) + 100), images=())
    forged = {
        "signature-invalid": genuine.replace(b'"believed"', b'"belieFed"', 1),
        "list-expired": signed_by_catalogue(
            farm,
            replace(newer, created=now - timedelta(days=9), expires=now - timedelta(days=6)),
        ),
        "version-down": signed_by_catalogue(
            farm, replace(newer, version=str(int(current.version) - 1))
        ),
    }
    try:
        for code, message in forged.items():
            before = report(node)["refused"].get(code, 0)
            retain(farm, "controller", {"site-list": message})
            eventually(code, lambda c=code, b=before: report(node)["refused"].get(c, 0) > b)
            assert report(node)["site_list_version"] == current.version
    finally:
        retain(farm, "controller", {"site-list": genuine})
    rollout = start(farm, image, "wn1")
    wait(farm, rollout)


def test_a_torrent_in_the_place_of_another_is_refused_against_the_site_list(
    farm: Farm, watcher: str, tmp_path: Any
) -> None:
    image = farm.publish(2 * MIB, alias="replaced")
    node = farm.nodes["wn2"]
    infohash = farm.ask("image", "show", "replaced")["infohash"]
    topic = f"torrent/{infohash}"
    genuine = retained(farm, watcher, topic)
    (tmp_path / "image.raw").write_bytes(os.urandom(2 * MIB))
    make_torrent(tmp_path / "image.raw", piece_bytes=64 << 10, out=tmp_path / "other")
    # A seeder that connects again would put its own torrent in the place of the forged one.
    seeder = seeder_of(farm)
    os.kill(seeder, signal.SIGSTOP)
    try:
        retain(farm, "seeder", {topic: info_of((tmp_path / "other").read_bytes())})
        rollout = start(farm, image, "wn2")
        eventually(
            "the node refuses it",
            lambda: (node.image(image) or {}).get("reason") == "torrent-mismatch",
        )
        assert (node.image(image) or {})["bytes_done"] == 0
        assert report(node)["refused"]["torrent-mismatch"] > 0
    finally:
        os.kill(seeder, signal.SIGCONT)
    eventually("the seeder mends it", lambda: retained(farm, watcher, topic) == genuine)
    wait(farm, rollout)
    assert sha256(node.volume(image)) == image.sha256


def test_a_peer_with_corrupt_blocks_is_named_and_nobody_ends_with_them(farm: Farm) -> None:
    image = farm.publish(16 * MIB, alias="rotten")
    liar = farm.nodes["wn3"]
    wait(farm, start(farm, image, "wn3"))
    # The disk under a sealed volume goes bad; libtorrent serves what it reads.
    volume = liar.volume(image)
    volume.chmod(0o644)
    before = volume.stat()
    with volume.open("r+b") as file:
        for offset in range(0, 16 * MIB, 512 << 10):
            file.seek(offset)
            file.write(os.urandom(64))
    # A disk that goes bad leaves no time stamp, so that the agent cannot notice by looking.
    os.utime(volume, ns=(before.st_atime_ns, before.st_mtime_ns))
    wait(farm, start(farm, image, "wn1,wn2,wn4"))
    others = [farm.nodes[name] for name in ("wn1", "wn2", "wn4")]
    assert {sha256(node.volume(image)) for node in others} == {image.sha256}
    named = {
        (bad["node"], bad["address"])
        for node in others
        for bad in (node.image(image) or {})["bad_peers"]
    }
    assert named == {("wn3", liar.host.address)}
    assert sum((node.image(image) or {})["wasted_bytes"] for node in others) > 0
    with pytest.raises(CommandFailed, match="pieces are bad") as found:
        liar.run("verify", "rotten")
    assert found.value.status == 3
    eventually("the bad pieces were fetched again", lambda: liar.state(image) == "ready")
    assert sha256(liar.volume(image)) == image.sha256
