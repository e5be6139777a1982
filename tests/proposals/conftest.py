"""A head that users bring images to, its collector running."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from distrib.catalogue.proposal_settings import ProposalSettings
from distrib.trust.testpki import Demo, create_demo
from tests.head.stories import Head, open_head, serve
from tests.intake.disks import CLEAN, MIB, ext4, partitioned


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """A site with its CA."""
    return create_demo(
        tmp_path_factory.mktemp("pki"), site="Example Site", nodes=[], now=datetime.now(UTC)
    )


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk that passes every check; larger than one part of an upload."""
    folder = tmp_path_factory.mktemp("disk")
    return partitioned(folder / "guest.raw", ext4(folder / "root.img", CLEAN, size_bytes=12 * MIB))


@pytest.fixture
def head(tmp_path: Path, pki: Demo) -> Iterator[Head]:
    """Users may have two images of 64 MiB together."""
    settings = ProposalSettings(max_images=2, max_bytes=64 * MIB)
    with structlog.testing.capture_logs():
        made = open_head(tmp_path / "head", pki, Ed25519PrivateKey.generate(), proposals=settings)
        with serve(made), collecting(made):
            yield made
        made.database.close()


@contextmanager
def collecting(head: Head) -> Iterator[None]:
    """What has come in is made raw and looked into while the block runs."""
    up = threading.Event()
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = []

    async def run() -> None:
        task = asyncio.create_task(head.catalogue.collector.run())
        running.append((asyncio.get_running_loop(), task))
        up.set()
        await asyncio.gather(task, return_exceptions=True)

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="collector")
    thread.start()
    assert up.wait(10)
    try:
        yield
    finally:
        loop, task = running[0]
        loop.call_soon_threadsafe(task.cancel)
        thread.join(15)
        assert not thread.is_alive()
