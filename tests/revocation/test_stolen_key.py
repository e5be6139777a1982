"""The catalogue's key is stolen: revoked and replaced while everything runs, and nodes follow."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509

from agent.socket.client import AgentError, ask
from distrib.trust.signature import open_smime, sign_smime
from distrib.trust.sitelist import parse_site_list, render_site_list
from distrib.trust.testpki import Authority, Role
from tests.farm.bystander import retain, retained
from tests.farm.farm import Farm, Image, Node
from tests.farm.process import eventually
from tests.head.test_catalogue_key import load
from tests.revocation.watch import bring

pytestmark = pytest.mark.timeout(300)

MIB = 1 << 20


def status(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = ask(node.socket, "status")
    return found


def version_of(node: Node) -> int:
    return int(status(node)["report"]["site_list_version"] or 0)


def signed_at_the_head(farm: Farm) -> tuple[int, Any]:
    """Version and signer of the newest site list of the head."""
    opened = open_smime((farm.state / "head" / "site-list.smime").read_bytes())
    return int(parse_site_list(opened.document).version), opened.signer


def revoked_by(node: Node) -> set[int]:
    """The serial numbers in the newest CRL that the node accepted."""
    file = node.directory / "state" / "crl.pem"
    if not file.exists():
        return set()
    return {entry.serial_number for entry in x509.load_pem_x509_crl(file.read_bytes())}


def gives_leases(node: Node, image: Image) -> bool:
    try:
        lease = ask(node.socket, "lease", image=image.alias)["lease"]
    except AgentError:
        return False
    ask(node.socket, "release", lease=lease)
    return True


def test_nodes_follow_the_new_key_and_refuse_the_old_one_whatever_its_lists_say(
    farm: Farm,
) -> None:
    image = farm.publish(MIB, alias="kept")
    bring(farm, image)
    *online, away = farm.nodes.values()
    away.stop()
    authority = Authority.load(farm.pki / "site")
    stolen = load(authority)
    # Read with the certificate of the one that is away: another would be pushed off the broker.
    genuine = parse_site_list(open_smime(retained(farm, away.name, "site-list")).document)

    def forged(ahead_s: int) -> bytes:
        """A list of the thief's, without any image."""
        version = str(int(datetime.now(UTC).timestamp()) + ahead_s)
        document = render_site_list(replace(genuine, version=version, images=()))
        return sign_smime(document, stolen.certificate, stolen.key)

    # Before anybody knows, the thief's word is the site's: only the number has a bound.
    retain(farm, "controller", {"site-list": forged(3600)})
    eventually("misled", lambda: not any(gives_leases(node, image) for node in online))
    misled = version_of(online[0])

    # The two steps of the guide, while everything runs.
    authority.revoke(stolen.certificate, now=datetime.now(UTC))
    replaced = authority.issue(Role.CATALOGUE, now=datetime.now(UTC))
    eventually("signed anew", lambda: signed_at_the_head(farm)[1] == replaced.certificate)
    for node in online:
        eventually("follows", lambda node=node: gives_leases(node, image))
        assert version_of(node) < misled

    # Lists of the old key: with a higher number, and with one of the far future.
    for ahead_s in (7200, 400 * 86400):
        before = {
            node.name: status(node)["report"]["refused"].get("certificate-revoked", 0)
            for node in online
        }
        kept = {node.name: version_of(node) for node in online}
        retain(farm, "controller", {"site-list": forged(ahead_s)})
        for node in online:
            eventually(
                "refused",
                lambda node=node, before=before: (
                    status(node)["report"]["refused"].get("certificate-revoked", 0)
                    > before[node.name]
                ),
            )
            assert version_of(node) == kept[node.name]
            assert gives_leases(node, image)

    # One that was away all the time: what it has on disk was signed by the old key, and its trust
    # directory knows nothing of the theft. It hears of it from the bus.
    before_theft = int(genuine.version)
    away.start()
    eventually("it follows", lambda: version_of(away) == signed_at_the_head(farm)[0])
    assert version_of(away) > before_theft
    assert gives_leases(away, image)
    eventually("it knows why", lambda: stolen.certificate.serial_number in revoked_by(away))
