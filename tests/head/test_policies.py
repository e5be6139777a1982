"""What a CA of the site's trust directory may certify, seen from intake."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from distrib.controller_settings import ControllerSettings
from distrib.errors import ConfigInvalid
from distrib.trust.testpki import Demo
from tests.head.stories import Endorser, Head, entry, image_bytes
from tests.head.test_intake import announce, refused


@pytest.fixture
def policy(pki: Demo) -> Iterator[Path]:
    """The experiment's ``HASH.namespaces``, for this story only."""
    path = pki.experiment.crl_path.with_suffix(".namespaces")
    yield path
    path.unlink(missing_ok=True)


def test_an_endorser_whose_name_is_not_the_cas_to_give(
    served: Head, endorser: Endorser, policy: Path
) -> None:
    """The file counts from the next list on, without a restart."""
    content = image_bytes()
    signed = endorser.sign(entry(content))
    with served.http() as http:
        policy.write_text('TO Issuer SELF PERMIT Subject "/O=Somebody Else/.*"\n')
        error = refused(announce(http, signed, content), 422, "trust-refused")
        assert [reason["code"] for reason in error["reasons"]] == ["namespace-not-permitted"]
        policy.write_text("not a policy\n")
        error = refused(announce(http, signed, content), 422, "trust-refused")
        assert [reason["code"] for reason in error["reasons"]] == ["policy-invalid"]
        policy.write_text('TO Issuer SELF PERMIT Subject "/O=Experiment/.*"\n')
        assert announce(http, signed, content).status_code == 201


def test_the_setting() -> None:
    assert ControllerSettings.load(environ={}).trust.policies == "if-present"
    with pytest.raises(ConfigInvalid, match=r"trust\.policies"):
        ControllerSettings.load(flags={"trust.policies": "sometimes"}, environ={})
