"""A head that takes images in, an endorser, and a server that has the images."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from distrib.trust.testpki import Demo, create_demo
from tests.handshakes import cut_connections, forgive
from tests.head.stories import Endorser
from tests.intake.stories import Site
from tests.subscriptions.server import ListServer, list_server

__all__ = ["cut_connections"]


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """A site with its CA, and an experiment."""
    return create_demo(
        tmp_path_factory.mktemp("pki"), site="Example Site", nodes=[], now=datetime.now(UTC)
    )


@pytest.fixture
def server(pki: Demo) -> Iterator[ListServer]:
    """Where the experiment has its images."""
    with list_server(pki) as running:
        yield running


@pytest.fixture
def site(tmp_path: Path, pki: Demo, server: ListServer) -> Iterator[Site]:
    """A head that follows the experiment's list."""
    made = Site(
        tmp_path / "head", pki, Endorser(pki.issued[-1]), server, Ed25519PrivateKey.generate()
    )
    with structlog.testing.capture_logs():
        yield made
    made.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Connections are cut in handshakes here."""
    forgive(items, Path(__file__).parent)
