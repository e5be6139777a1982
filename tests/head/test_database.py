"""The database: migrations make the models, a newer schema is refused, transactions hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

import distrib.db.intake_models
import distrib.db.use_models  # noqa: F401 - their tables belong to Base.metadata
from distrib.db.models import Base, Counter, Node
from distrib.db.schema import schema_revision, upgrade
from distrib.db.session import Database
from distrib.errors import ConfigInvalid, Conflict

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def database(tmp_path: Path, database_url: Callable[[Path], str]) -> Iterator[Database]:
    opened = Database(database_url(tmp_path))
    upgrade(opened)
    yield opened
    opened.close()


def test_migrations_make_what_the_models_say(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, Base.metadata) == []


def test_upgrade_twice_changes_nothing(database: Database) -> None:
    upgrade(database)
    with database.engine.connect() as connection:
        assert schema_revision(connection) == "0004"


def test_a_newer_schema_is_refused_in_one_line(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(Conflict, match=r"schema 9999.*knows up to 0004") as refusal:
        upgrade(database)
    assert "\n" not in refusal.value.message


def test_a_transaction_that_raises_leaves_nothing(database: Database) -> None:
    with pytest.raises(RuntimeError), database.transaction() as session:
        session.add(Counter(name="rollout", value=7))
        session.flush()
        raise RuntimeError
    with database.reading() as session:
        assert session.get(Counter, "rollout") is None


def test_what_is_changed_while_reading_is_thrown_away(database: Database) -> None:
    with database.reading() as session:
        session.add(Counter(name="rollout", value=7))
        session.flush()
    with database.reading() as session:
        assert session.get(Counter, "rollout") is None


def test_a_reader_does_not_wait_for_a_writer(database: Database) -> None:
    with database.transaction() as writer:
        writer.add(Counter(name="rollout", value=7))
        writer.flush()
        with database.reading() as reader:
            assert reader.get(Counter, "rollout") is None


def test_times_come_back_in_utc(database: Database) -> None:
    with database.transaction() as session:
        session.add(Node(name="wn001", address="192.0.2.1", added_at=NOW, added_by="ops"))
    with database.reading() as session:
        node = session.get(Node, "wn001")
        assert node is not None
        assert node.added_at == NOW
        assert node.labels == {}


def test_a_wrong_url_is_a_setting_to_mend() -> None:
    with pytest.raises(ConfigInvalid, match=r"database\.url"):
        Database("nonsense")
    with pytest.raises(ConfigInvalid, match=r"database\.url"):
        Database("nosuchdb://host/name")
