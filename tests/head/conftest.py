"""A head of its own for each story: database, catalogue, and the API over TLS on loopback.

Stories of the modules in ``BOTH`` are told twice: on SQLite and on PostgreSQL.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from distrib.db.session import sqlite_url
from distrib.trust.names import slash_form
from distrib.trust.testpki import Demo, create_demo
from distrib.trust.testpki import Role as CertificateRole
from tests.head.postgresql import Cluster, private_cluster
from tests.head.stories import LIST, Endorser, Head, open_head, serve

BOTH = {
    "test_database",
    "test_denial",
    "test_events",
    "test_history",
    "test_intake",
    "test_site_list",
}

DatabaseUrl = Callable[[Path], str]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    name = metafunc.module.__name__.rpartition(".")[2]
    if "database_url" not in metafunc.fixturenames:
        return
    one_file = metafunc.definition.get_closest_marker("sqlite_file") is not None
    kinds = ["sqlite", "postgresql"] if name in BOTH and not one_file else ["sqlite"]
    metafunc.parametrize("database_url", kinds, indirect=True)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Started for the first story that is told on PostgreSQL."""
    with private_cluster() as running:
        yield running


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> DatabaseUrl:
    """The URL of the database of a head over a directory; the same for the same directory."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return lambda directory: sqlite_url(directory / "distrib.db")
    running: Cluster = request.getfixturevalue("cluster")
    made: defaultdict[Path, str] = defaultdict(running.database)
    return lambda directory: made[directory]


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
def opened(
    tmp_path: Path, pki: Demo, orders_key: Ed25519PrivateKey, database_url: DatabaseUrl
) -> Iterator[Any]:
    """Opens a head over a directory (``opened("name")``); closed when the story ends."""
    heads: list[Head] = []

    def open_one(name: str = "head") -> Head:
        directory = tmp_path / name
        heads.append(open_head(directory, pki, orders_key, url=database_url(directory)))
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
