"""A head of its own for each story: SQLite, catalogue, and the API over TLS on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from distrib.trust.names import slash_form
from distrib.trust.testpki import Demo, create_demo
from distrib.trust.testpki import Role as CertificateRole
from tests.head.stories import LIST, Endorser, Head, open_head, serve


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Two authorities and what they issued; RSA keys take their time, so once a run."""
    return create_demo(
        tmp_path_factory.mktemp("pki"), site="Example Site", nodes=["wn001"], now=datetime.now(UTC)
    )


@pytest.fixture(scope="session")
def endorser(pki: Demo) -> Endorser:
    """The endorser that sites of these stories know."""
    found = next(one for one in pki.issued if "/CN=Endorser" in slash_form(one.certificate.subject))
    return Endorser(found)


@pytest.fixture(scope="session")
def stranger(pki: Demo) -> Endorser:
    """Certified by the same CA, authorised by nobody."""
    issued = pki.experiment.issue(CertificateRole.ENDORSER, "Stranger", now=datetime.now(UTC))
    return Endorser(issued)


@pytest.fixture(scope="session")
def orders_key() -> Ed25519PrivateKey:
    """The controller's key."""
    return Ed25519PrivateKey.generate()


@pytest.fixture
def opened(tmp_path: Path, pki: Demo, orders_key: Ed25519PrivateKey) -> Iterator[Any]:
    """Opens a head over a directory (``opened("name")``); closed when the story ends."""
    heads: list[Head] = []

    def open_one(name: str = "head") -> Head:
        heads.append(open_head(tmp_path / name, pki, orders_key))
        return heads[-1]

    yield open_one
    for one in heads:
        one.database.close()


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """What is logged, instead of on the output of the commands."""
    with structlog.testing.capture_logs() as logs:
        yield logs


@pytest.fixture
def head(opened: Any, endorser: Endorser, logged: list[Any]) -> Head:
    """A head that lets the endorser sign its list."""
    made: Head = opened()
    made.catalogue.endorsers.add(dn=endorser.dn, ca=endorser.ca, list_identifier=LIST, actor="test")
    return made


@pytest.fixture
def served(head: Head) -> Iterator[Head]:
    """The same, answering over TLS."""
    with serve(head):
        yield head
