"""Bringing a database to the schema of this code, at the controller's start."""

from __future__ import annotations

from pathlib import Path

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from distrib.db.session import Database
from distrib.errors import Conflict

log = structlog.get_logger(__name__)

_UPGRADE_LOCK = 0x64697374  # any number that nobody else locks by
MIGRATIONS = Path(__file__).parent / "migrations"


def upgrade(database: Database) -> None:
    """Run the migrations that are missing, in one transaction.

    Raises Conflict where the database was written by a newer distrib.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    script = ScriptDirectory.from_config(config)
    with database.engine.begin() as connection:
        if not database.is_sqlite:
            # Head and standby may start at once; SQLite's BEGIN IMMEDIATE is a lock already.
            connection.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": _UPGRADE_LOCK})
        before = schema_revision(connection)
        _refuse_newer(before, script)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        after = schema_revision(connection)
    if before != after:
        log.info("database-upgraded", before=before, after=after)


def schema_revision(connection: Connection) -> str | None:
    """The revision that the database is at; None for an empty one."""
    return MigrationContext.configure(connection).get_current_revision()


def _refuse_newer(revision: str | None, script: ScriptDirectory) -> None:
    known = {entry.revision for entry in script.walk_revisions()}
    if revision is not None and revision not in known:
        raise Conflict(
            f"the database has schema {revision}, this distrib knows up to {max(known)}",
            hint="start the distrib that wrote it, or restore a backup from before the upgrade",
            revision=revision,
        )
