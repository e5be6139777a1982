"""The engine and its transactions; synchronous: async callers use ``asyncio.to_thread``.

SQLite: WAL, so that readers never wait for the writer; a writing transaction takes the write lock
at its start (``BEGIN IMMEDIATE``), because a read that turns into a write cannot wait for a lock,
it fails at once whatever ``busy_timeout`` says (sqlite.org/lang_transaction.html).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.orm import Session

from distrib.errors import ConfigInvalid, NetworkError, StorageFailed, ToolMissing

BUSY_TIMEOUT_S = 10.0
_READ_ONLY = "distrib_read_only"


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{path.absolute()}"


class Database:
    """One database by URL (``sqlite:////path`` or ``postgresql+psycopg://...``).

    Raises ConfigInvalid for a URL that is none, ToolMissing where its driver is not installed.
    """

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a SQLite file."""
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """All or nothing: committed at the end of the block, rolled back when it raises."""
        opened = Session(self.engine, expire_on_commit=False)
        with self._named_faults(), opened as session, session.begin():
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """One consistent view; what is changed in it is thrown away. Never waits for a writer."""
        engine = self.engine.execution_options(**{_READ_ONLY: True})
        with self._named_faults(), Session(engine, expire_on_commit=False) as session:
            # Closing rolls back; an explicit rollback would also expire the rows that were read.
            yield session

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    @contextmanager
    def _named_faults(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            where = self.engine.url.render_as_string(hide_password=True)
            if self.is_sqlite:
                # A broken rule of the schema is our fault; a full or read-only disk is not.
                if not isinstance(error.orig, sqlite3.OperationalError):
                    raise
                raise StorageFailed(
                    f"{where}: {error.orig}", hint="check space and rights of the state directory"
                ) from error
            if error.connection_invalidated or "connection" in str(error.orig).lower():
                raise NetworkError(
                    f"{where}: {str(error.orig).splitlines()[0]}",
                    hint="is the database server running?",
                ) from error
            raise


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        sqlite = parsed.get_backend_name() == "sqlite"
        arguments = {"timeout": BUSY_TIMEOUT_S} if sqlite else {}
        engine = create_engine(parsed, connect_args=arguments, pool_pre_ping=not sqlite)
    except (ArgumentError, NoSuchModuleError) as error:
        raise ConfigInvalid(
            f"database.url: {error}", hint="sqlite:////path/distrib.db, or PostgreSQL's"
        ) from None
    except ModuleNotFoundError as error:
        raise ToolMissing(
            f"database.url: {error}", hint="pip install 'distrib[postgresql]'"
        ) from None
    if sqlite:
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # None: the driver starts no transactions of its own, so that DDL is inside ours too.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "foreign_keys=ON", "synchronous=FULL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    read_only = connection.get_execution_options().get(_READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
