"""One bed for all batch tests of a run: a head, a queue master, two nodes that run guests."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.batch.site import Site, site
from tests.farm.process import eventually
from tests.launch.conftest import guest_image

__all__ = ["guest_image"]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def grid(tmp_path_factory: pytest.TempPathFactory, guest_image: Path) -> Iterator[Site]:
    """A site whose batch system is Grid Engine."""
    layer = subprocess.run(
        [ROOT / "scripts" / "gridengine"], check=True, capture_output=True, text=True
    ).stdout.strip()
    with site(tmp_path_factory.mktemp("grid"), guest_image, layers=[Path(layer)]) as made:
        yield made


@pytest.fixture
def nothing_left(grid: Site) -> Iterator[None]:
    """No job leaves a guest, an instance or a lease behind, nor a queue in an error state."""
    yield
    # Of a test that has failed: the next one is not to suffer for it.
    grid.cell.admin("qdel", "-u", "*", check=False)
    eventually("nothing is left", lambda: grid.left() == {}, limit_s=90)
    assert set(grid.cell.states().values()) == {""}
