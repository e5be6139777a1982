"""A head that follows lists, and servers that have them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from distrib.trust.testpki import Demo, create_demo
from distrib.trust.testpki import Role as CertificateRole
from tests.handshakes import cut_connections, forgive
from tests.head.stories import Endorser, Head
from tests.subscriptions.server import ListServer, list_server
from tests.subscriptions.stories import Follower, open_site

__all__ = ["cut_connections"]


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Site A with its CA, and an experiment."""
    return create_demo(
        tmp_path_factory.mktemp("pki"), site="Site A", nodes=[], now=datetime.now(UTC)
    )


@pytest.fixture(scope="session")
def endorser(pki: Demo) -> Endorser:
    """Who signs the experiment's list."""
    return Endorser(pki.issued[-1])


@pytest.fixture(scope="session")
def successor(pki: Demo) -> Endorser:
    """Another endorser of the same experiment."""
    issued = pki.experiment.issue(CertificateRole.ENDORSER, "Successor", now=datetime.now(UTC))
    return Endorser(issued)


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """What is logged."""
    with structlog.testing.capture_logs() as logs:
        yield logs


@pytest.fixture
def server(pki: Demo) -> Iterator[ListServer]:
    """Where the experiment has its lists."""
    with list_server(pki) as running:
        yield running


@pytest.fixture
def head(tmp_path: Path, pki: Demo, logged: list[Any]) -> Iterator[Head]:
    """Site A's head; nobody may sign anything for it yet."""
    made = open_site(
        tmp_path / "a", pki.site, pki.experiment.trust_directory, Ed25519PrivateKey.generate()
    )
    yield made
    made.database.close()


@pytest.fixture
def follower(head: Head, server: ListServer, endorser: Endorser) -> Follower:
    """Follows the experiment's list on the server."""
    return Follower(head, server, endorser)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Connections are cut in handshakes here."""
    forgive(items, Path(__file__).parent)
