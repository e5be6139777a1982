"""A PostgreSQL of the tests' own: one cluster a session, on a unix socket, a database a story."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from distrib.db.schema import upgrade
from distrib.db.session import Database

_ACCOUNT = "postgres"
_MIGRATED = "migrated"


class Cluster:
    """A running server; ``database()`` gives the URL of a new database with our tables in it."""

    def __init__(self, socket_dir: Path) -> None:
        self._socket_dir = socket_dir
        self._sql(f"CREATE DATABASE {_MIGRATED}")
        made = Database(self._url(_MIGRATED))
        upgrade(made)
        made.close()

    def database(self, *, template: str = _MIGRATED) -> str:
        """The URL of a new database, by default of one that was migrated."""
        name = f"d{uuid.uuid4().hex}"
        self._sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self._url(name)

    def _url(self, name: str) -> str:
        return f"postgresql+psycopg://{_ACCOUNT}@/{name}?host={self._socket_dir}"

    def _sql(self, statement: str) -> None:
        where = {"host": str(self._socket_dir), "user": _ACCOUNT, "dbname": "postgres"}
        with psycopg.connect(**where, autocommit=True) as connection:
            connection.execute(statement.encode())


@contextmanager
def private_cluster() -> Iterator[Cluster]:
    """A cluster in a directory that goes with it; the path is short, because of its socket."""
    directory = Path(tempfile.mkdtemp(prefix="distrib-pg-", dir="/tmp"))
    data = directory / "data"
    try:
        if os.geteuid() == 0:
            account = pwd.getpwnam(_ACCOUNT)
            os.chown(directory, account.pw_uid, account.pw_gid)
        _run("initdb", f"--pgdata={data}", f"--username={_ACCOUNT}", "--auth=trust", "--no-sync")
        options = (
            f"-c listen_addresses='' -c unix_socket_directories={directory}"
            " -c fsync=off -c synchronous_commit=off -c full_page_writes=off"
        )
        log = f"--log={directory / 'log'}"
        _run("pg_ctl", f"--pgdata={data}", "--wait", log, f"--options={options}", "start")
        try:
            yield Cluster(directory)
        finally:
            _run("pg_ctl", f"--pgdata={data}", "--wait", "--mode=immediate", "stop")
    finally:
        shutil.rmtree(directory)


def _run(program: str, *arguments: str) -> None:
    """As the account of PostgreSQL, which refuses to run as root."""
    newest = max(Path("/usr/lib/postgresql").iterdir(), key=lambda found: int(found.name))
    prefix = ["setpriv", f"--reuid={_ACCOUNT}", f"--regid={_ACCOUNT}", "--clear-groups"]
    done = subprocess.run(
        [*(prefix if os.geteuid() == 0 else []), str(newest / "bin" / program), *arguments],
        stdin=subprocess.DEVNULL,
        # To a file that is read after: the server keeps a pipe open.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, f"{program} ended with {done.returncode}"
