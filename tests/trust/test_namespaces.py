"""Which names a CA may certify: ``signing_policy`` and ``namespaces`` files of grid sites."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from distrib.trust.chain import TrustMaterial, check_chain
from distrib.trust.directory import load_trust_directory
from distrib.trust.names import DistinguishedName
from distrib.trust.namespaces import PolicyUse, subject_hashes
from distrib.trust.policyfiles import MAX_POLICY_BYTES, parse_policy
from distrib.trust.verify import Expectation, verify

from .conftest import NOW, Intermediate, OpenSsl, World, codes, make_certificate

CA = "/O=Experiment/CN=Experiment CA"
EACL = """\
# EACL of a CA, with comments as CAs write them (\xe9)
 access_id_CA   X509    '{ca}'
 pos_rights     globus  CA:sign
 cond_subjects  globus  '{subjects}'
"""


def eacl(*subjects: str, ca: str = CA) -> str:
    return EACL.format(ca=ca, subjects=" ".join(f'"{subject}"' for subject in subjects))


def namespaces(*subjects: str, ca: str = f'"{CA}"', verb: str = "PERMIT") -> str:
    entries = [f'TO Issuer {ca} \\\n  {verb} Subject "{subject}"' for subject in subjects]
    return "\n".join(["#NAMESPACES-VERSION: 1.0", *entries, ""])


def directory(
    path: Path, world: World, policies: dict[str, str], *, use: PolicyUse = "if-present"
) -> TrustMaterial:
    """A trust directory as fetch-crl keeps it; a policy's name begins with HASH for the CA's."""
    ca_hash = world.experiment.crl_path.stem
    for source in world.experiment.trust_directory.iterdir():
        (path / source.name).write_bytes(source.read_bytes())
    for name, text in policies.items():
        (path / name.replace("HASH", ca_hash)).write_bytes(text.encode("latin-1"))
    return load_trust_directory(path, policies=use)


def judge(
    path: Path, world: World, policies: dict[str, str], *, use: PolicyUse = "if-present"
) -> list[str]:
    trust = directory(path, world, policies, use=use)
    return codes(check_chain(world.endorser.certificate, trust=trust, now=NOW))


@pytest.mark.parametrize("subject", ["/O=Experiment/*", "/O=Exp?riment/CN=Jane*", "*", "/o=Experiment/*"])  # noqa: E501  # fmt: skip
def test_a_signing_policy_permits(tmp_path: Path, world: World, subject: str) -> None:
    assert judge(tmp_path, world, {"HASH.signing_policy": eacl("/C=DE/*", subject)}) == []


def test_outer_quotes_may_be_left_out(tmp_path: Path, world: World) -> None:
    for number, text in enumerate((eacl("*").replace("'", ""), eacl("*").replace('"', ""))):
        path = tmp_path / str(number)
        path.mkdir()
        assert judge(path, world, {"HASH.signing_policy": text}) == []


@pytest.mark.parametrize("subject", ["/O=Other/*", "/O=Experiment", "/O=Experiment/CN=J?ne"])
def test_a_signing_policy_does_not_permit(tmp_path: Path, world: World, subject: str) -> None:
    found = judge(tmp_path, world, {"HASH.signing_policy": eacl(subject)})
    assert found == ["namespace-not-permitted"]


@pytest.mark.parametrize("subject", ["/O=Experiment/.*", "/O=Experiment/CN=Jane Endorser", ".*"])
def test_a_namespaces_file_permits(tmp_path: Path, world: World, subject: str) -> None:
    assert judge(tmp_path, world, {"HASH.namespaces": namespaces(subject)}) == []
    itself = namespaces(subject, ca="SELF")
    assert judge(tmp_path, world, {"HASH.namespaces": itself}) == []


@pytest.mark.parametrize("subject", ["/O=Other/.*", "/O=Experiment", "/O=Experiment/*", "/O=E.p.*"])
def test_a_namespaces_file_does_not_permit(tmp_path: Path, world: World, subject: str) -> None:
    """A dot permits a dot, a star alone a star."""
    found = judge(tmp_path, world, {"HASH.namespaces": namespaces(subject)})
    assert found == ["namespace-not-permitted"]


def test_what_is_denied_is_refused_though_it_is_permitted_too(tmp_path: Path, world: World) -> None:
    both = namespaces("/O=Experiment/.*") + namespaces("/O=Exper.ment/CN=Jane .*", verb="DENY")
    assert judge(tmp_path, world, {"HASH.namespaces": both}) == ["namespace-not-permitted"]
    other = namespaces("/O=Experiment/.*") + namespaces("/O=Experiment/CN=John.*", verb="DENY")
    assert judge(tmp_path, world, {"HASH.namespaces": other}) == []


def test_where_a_ca_has_both_the_namespaces_file_counts(tmp_path: Path, world: World) -> None:
    permits, forbids = namespaces("/O=Experiment/.*"), eacl("/O=Other/*")
    both = {"HASH.namespaces": permits, "HASH.signing_policy": forbids}
    assert judge(tmp_path, world, both) == []
    both = {"HASH.namespaces": namespaces("/O=O/.*"), "HASH.signing_policy": eacl("*")}
    assert judge(tmp_path, world, both) == ["namespace-not-permitted"]


def test_a_policy_of_another_ca_under_this_ones_name_permits_nothing(
    tmp_path: Path, world: World
) -> None:
    policy = {"HASH.signing_policy": eacl("*", ca="/O=Other/CN=Other CA")}
    assert judge(tmp_path, world, policy) == ["namespace-not-permitted"]


def test_a_policy_that_names_the_ca_binds_it_whatever_the_file_is_called(
    tmp_path: Path, world: World
) -> None:
    policy = {"Experiment-CA.signing_policy": eacl("/O=Other/*")}
    assert judge(tmp_path, world, policy) == ["namespace-not-permitted"]


def test_the_old_hash_names_the_same_ca(tmp_path: Path, world: World, openssl: OpenSsl) -> None:
    certificate = world.experiment.certificate
    pem = certificate.public_bytes(Encoding.PEM)
    printed = {
        openssl("x509", "-noout", option, stdin=pem).decode().strip()
        for option in ("-subject_hash", "-subject_hash_old")
    }
    assert subject_hashes(certificate) == printed
    old = openssl("x509", "-noout", "-subject_hash_old", stdin=pem).decode().strip()
    policy = {f"{old}.namespaces": namespaces("/O=Other/.*", ca="SELF")}
    assert judge(tmp_path, world, policy) == ["namespace-not-permitted"]


def test_a_ca_without_a_policy(tmp_path: Path, world: World) -> None:
    elsewhere = {"aaaaaaaa.signing_policy": eacl("*", ca="/O=Other/CN=Other CA")}
    assert judge(tmp_path, world, elsewhere) == []
    assert judge(tmp_path, world, elsewhere, use="require") == ["policy-missing"]
    assert judge(tmp_path, world, {"HASH.signing_policy": eacl("*")}, use="require") == []


BROKEN = {
    "empty": "",
    "only comments": "# nothing\n",
    "junk": "not read",
    "half a quote": eacl("*")[:-3],
    "no rights": eacl("*").replace("pos_rights     globus  CA:sign", ""),
    "other rights": eacl("*").replace("CA:sign", "CA:ask"),
    "negative rights": eacl("*") + " neg_rights globus CA:sign\n",
    "no subjects": eacl("*").replace("cond_subjects", "# cond_subjects"),
    "an empty subject": eacl(""),
    "an issuer that is no name": eacl("*", ca="GridKa-CA"),
    "too long": eacl("/O=" + "x" * 2000),
    "too large": eacl("*") + "#" * MAX_POLICY_BYTES,
}
BROKEN_NAMESPACES = {
    "empty": "",
    "junk": "TO whom it may concern",
    "another format": namespaces(".*").replace("1.0", "2.0"),
    "no subject": f'TO Issuer "{CA}" PERMIT\n',
    "an open quote": namespaces(".*").rstrip()[:-1],
    "an open line": namespaces(".*") + 'TO Issuer "/O=x" \\\n',
    "an issuer that is no name": namespaces(".*", ca='"somebody"'),
    "a denial that is more than it seems": namespaces("/O=(A|B)/.*", verb="DENY"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_signing_policy_that_cannot_be_read_refuses(
    tmp_path: Path, world: World, case: str
) -> None:
    assert judge(tmp_path, world, {"HASH.signing_policy": BROKEN[case]}) == ["policy-invalid"]


@pytest.mark.parametrize("case", BROKEN_NAMESPACES)
def test_a_namespaces_file_that_cannot_be_read_refuses(
    tmp_path: Path, world: World, case: str
) -> None:
    """Not even a good policy in the other format makes up for it."""
    both = {"HASH.namespaces": BROKEN_NAMESPACES[case], "HASH.signing_policy": eacl("*")}
    assert judge(tmp_path, world, both) == ["policy-invalid"]


def test_whom_a_broken_policy_concerns(tmp_path: Path, world: World) -> None:
    """By its name another CA; or nobody knows, so everybody."""
    assert judge(tmp_path, world, {"aaaaaaaa.namespaces": "junk"}) == []
    assert judge(tmp_path, world, {"mystery.namespaces": "junk"}) == ["policy-invalid"]


def test_a_policy_link_that_leads_nowhere_refuses(tmp_path: Path, world: World) -> None:
    (tmp_path / f"{world.experiment.crl_path.stem}.namespaces").symlink_to("gone")
    assert judge(tmp_path, world, {}) == ["policy-invalid"]


def test_every_ca_of_the_path_is_held_to_its_policy(
    tmp_path: Path, world: World, intermediate: Intermediate
) -> None:
    """The root's policy about the intermediate, and the intermediate's about the leaf."""

    def found(policies: dict[str, str]) -> list[str]:
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        path.mkdir()
        trust = directory(path, world, policies).with_crls(intermediate.crl())
        reasons = check_chain(
            intermediate.leaf, untrusted=[intermediate.certificate], trust=trust, now=NOW
        )
        return codes(reasons)

    middle = sorted(subject_hashes(intermediate.certificate))[0]
    assert found({"HASH.signing_policy": eacl("/CN=Middle CA")}) == []
    assert found({"HASH.signing_policy": eacl("/CN=Jane Below")}) == ["namespace-not-permitted"]
    own = {f"{middle}.namespaces": namespaces("/CN=Jane .*", ca="SELF")}
    assert found(own) == []
    own = {f"{middle}.namespaces": namespaces("/CN=John .*", ca="SELF")}
    assert found(own) == ["namespace-not-permitted"]
    by_name = {"middle.signing_policy": eacl("/CN=John*", ca="/CN=Middle CA")}
    assert found(by_name) == ["namespace-not-permitted"]


def test_a_common_name_cannot_fake_the_organisation_that_a_policy_asks_for(
    tmp_path: Path, world: World
) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    forged = make_certificate("x/O=Experiment/CN=Jane", key, world.experiment)
    trust = directory(tmp_path, world, {"HASH.signing_policy": eacl("*/O=Experiment/*")})
    assert codes(check_chain(forged, trust=trust, now=NOW)) == ["namespace-not-permitted"]
    assert check_chain(world.endorser.certificate, trust=trust, now=NOW) == ()


def test_e_mail_addresses_and_letters_beyond_ascii_in_policies() -> None:
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Zo\u00eb"),
            x509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@example.org"),
        ]
    )
    flat = DistinguishedName.from_x509(name).flat()
    for text in ("/O=Zo\u00eb/Email=a@*", r"/O=Zo\xc3\xab/E=a@*", "/O=*/emailAddress=a@*"):
        policy = parse_policy("a.signing_policy", eacl(text).encode())
        assert [rule.subject.matches(flat) for rule in policy.rules] == [True]


def test_a_list_is_refused_when_its_signers_name_is_not_the_cas_to_give(
    tmp_path: Path, world: World
) -> None:
    trust = directory(tmp_path, world, {"HASH.namespaces": namespaces("/O=Other/.*")})
    verdict = verify(world.signed(), trust=trust, expectation=Expectation(), now=NOW)
    assert codes(verdict.reasons) == ["namespace-not-permitted"]
    assert "HASH" not in verdict.reasons[0].message
    assert "/O=Experiment/CN=Jane Endorser" in verdict.reasons[0].message


@given(st.binary(max_size=400) | st.text(max_size=400).map(str.encode))
def test_no_bytes_crash_the_readers_of_policies(content: bytes) -> None:
    for kind in ("signing_policy", "namespaces"):
        policy = parse_policy(f"a.{kind}", content)
        assert bool(policy.rules) != bool(policy.fault)


@given(st.text("ab*?/=", max_size=30), st.text("ab/=", max_size=40))
def test_globs_match_what_a_regular_expression_would(pattern: str, subject: str) -> None:
    import re

    policy = parse_policy("a.signing_policy", eacl(f"/O={pattern}").encode())
    if policy.fault:
        return
    expression = "".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in pattern)
    expected = re.fullmatch(rf"/O={expression}", f"/O={subject}") is not None
    assert policy.rules[0].subject.matches(f"/O={subject}") == expected


def test_a_pattern_of_many_stars_is_fast() -> None:
    policy = parse_policy("a.signing_policy", eacl("*a" * 400 + "*b").encode())
    assert not policy.rules[0].subject.matches("/O=" + "a" * 2000)
