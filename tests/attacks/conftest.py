"""The worlds of the other suites, for those who attack them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from distrib.db.session import sqlite_url
from tests.head.conftest import endorser, head, logged, opened, orders_key, pki, served, stranger
from tests.trust.conftest import openssl, world

__all__ = [
    "endorser",
    "head",
    "logged",
    "opened",
    "openssl",
    "orders_key",
    "pki",
    "served",
    "stranger",
    "world",
]


@pytest.fixture
def database_url() -> Callable[[Path], str]:
    """SQLite; what goes against PostgreSQL asks for ``cluster``."""
    return lambda directory: sqlite_url(directory / "distrib.db")
