"""A farm of seven agents, on addresses of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests.farm.farm import Farm
from tests.revocation.place import farm_of


@pytest.fixture(scope="session")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """A head and seven running agents."""
    with farm_of(Path(tmp_path_factory.mktemp("revocation")), 7) as farm:
        yield farm


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Fifty clients that say that they are connected would hide what a story says."""
    with structlog.testing.capture_logs():
        yield
