"""The PKI for demos and tests: files, roles, names, revocation."""

from __future__ import annotations

import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from distrib.errors import ConfigInvalid, Conflict, NotFound
from distrib.trust.chain import check_chain
from distrib.trust.directory import load_trust_directory
from distrib.trust.testpki import Authority, Role, create_demo, subject_hash
from distrib.trust.verify import roles_of

from .conftest import NOW, OpenSsl, World, codes


def common_name(certificate: x509.Certificate) -> str:
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def test_openssl_agrees_on_the_hash_and_the_directory(world: World, openssl: OpenSsl) -> None:
    pem = world.site.certificate.public_bytes(Encoding.PEM)
    printed = openssl("x509", "-noout", "-subject_hash", stdin=pem)
    assert printed.decode().strip() == subject_hash(world.site.certificate)
    openssl(
        "verify", "-CApath", world.site.trust_directory, "-crl_check_all",
        "-attime", int(NOW.timestamp()), world.node.certificate_path,
    )  # fmt: skip


def test_keys_are_for_their_owner_only(world: World) -> None:
    for path in (world.site.directory / "ca.key", world.catalogue.key_path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_demo_has_every_role_under_two_authorities(tmp_path: Path, openssl: OpenSsl) -> None:
    demo = create_demo(tmp_path, site="Site", nodes=["wn001"], endorser="Jane", now=NOW)
    assert demo.site.certificate.subject != demo.experiment.certificate.subject
    assert {role for issued in demo.issued for role in roles_of(issued.certificate)} == set(Role)
    names = {common_name(issued.certificate) for issued in demo.issued}
    assert names == {"catalogue", "server", "controller", "seeder", "operator", "wn001", "Jane"}
    server = (tmp_path / "site" / "certs" / "server.pem").read_bytes()
    assert b"does match" in openssl("x509", "-noout", "-checkip", "127.0.0.1", stdin=server)
    assert b"does match" in openssl("x509", "-noout", "-checkhost", "localhost", stdin=server)
    with pytest.raises(Conflict):
        create_demo(tmp_path, site="Site", now=NOW)


def test_a_server_may_not_log_in_as_a_client(world: World, tmp_path: Path) -> None:
    site = Authority.create(tmp_path, "Site", now=NOW)

    def purposes(role: Role, name: str = "") -> set[x509.ObjectIdentifier]:
        certificate = site.issue(role, name, now=NOW).certificate
        return set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)

    assert purposes(Role.SERVER) == {ExtendedKeyUsageOID.SERVER_AUTH}
    assert purposes(Role.NODE, "wn1") == {ExtendedKeyUsageOID.CLIENT_AUTH}
    assert ExtendedKeyUsageOID.CLIENT_AUTH in purposes(Role.CONTROLLER)


@pytest.mark.parametrize(
    "name",
    ["", "controller", "seeder", "catalogue", "operator", "server", "WN001", "-x", "a/b", "a" * 64,
     "a b", "a\n", "wn+", "#"],
)  # fmt: skip
def test_names_that_no_node_may_have(world: World, name: str) -> None:
    with pytest.raises(ConfigInvalid):
        world.site.issue(Role.NODE, name, now=NOW)


def test_a_role_is_the_common_name_whatever_the_file_is_called(tmp_path: Path) -> None:
    """An operator called like a node would have the node's rights at the broker."""
    site = Authority.create(tmp_path, "Site", now=NOW)
    issued = site.issue(Role.OPERATOR, "wn001", now=NOW)
    assert common_name(issued.certificate) == "operator"


def test_revocation_adds_up_over_reloads(tmp_path: Path) -> None:
    Authority.create(tmp_path, "Site", now=NOW)
    first = Authority.load(tmp_path).issue(Role.NODE, "wn1", now=NOW).certificate
    second = Authority.load(tmp_path).issue(Role.NODE, "wn2", now=NOW).certificate
    third = Authority.load(tmp_path).issue(Role.NODE, "wn3", now=NOW).certificate
    for certificate in (first, second, second):
        Authority.load(tmp_path).revoke(certificate, now=NOW)
    Authority.load(tmp_path).write_crl(now=NOW + timedelta(minutes=1))
    trust = load_trust_directory(tmp_path / "trust")
    verdicts = [codes(check_chain(entry, trust=trust, now=NOW)) for entry in (first, second, third)]
    assert verdicts == [["certificate-revoked"], ["certificate-revoked"], []]


def test_no_authority(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as error:
        Authority.load(tmp_path)
    assert "testpki init" in error.value.hint
