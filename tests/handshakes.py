"""For tests that cut connections short, imported by the conftest of their folder.

httpcore leaves a connection to the garbage collector when it is cancelled in a TLS handshake
(``AnyIOStream.start_tls`` closes on ``Exception`` only), so its socket's ResourceWarning comes
whenever the collector does, in any test. Here it is no error, and it is collected here.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module", autouse=True)
def cut_connections() -> Iterator[None]:
    """What was cut off is collected before the next module."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def forgive(items: list[pytest.Item], folder: Path) -> None:
    """Let sockets that the collector closes be no error in the tests of ``folder``."""
    for item in items:
        if item.path.is_relative_to(folder):
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"))
