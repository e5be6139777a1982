"""`ready` is said of an image only once it was opened by the name that jobs' disks have it by."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from agent.cache.cache import Cache
from agent.cache.device import DeviceStore
from agent.cache.file import FileStore
from agent.cache.holders import holder_of_pid
from agent.cache.records import ImageVersion
from agent.cache.store import Store
from distrib.bus.messages import NodeReason, State
from distrib.errors import NotFound
from tests.cache.conftest import MIB, clock, devices, image

__all__ = ["clock", "devices", "image"]

_opened: list[str] | None = None


def _on_audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event in ("open", "os.rename"):
        _opened.append(f"{event} {arguments[0]}")


sys.addaudithook(_on_audit)


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """What this process opens and renames while the test runs."""
    global _opened  # noqa: PLW0603 - an audit hook cannot be taken off again
    _opened = []
    yield _opened
    _opened = None


@pytest.fixture(params=["file", pytest.param("device", marks=pytest.mark.root)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "file":
        return FileStore(tmp_path / "cache", 10 * MIB, reflink=False)
    attach: Callable[..., list[Path]] = request.getfixturevalue("devices")
    return DeviceStore(
        attach(2 * MIB),
        tmp_path / "links",
        instances_dir=tmp_path / "instances",
        instances_capacity_bytes=4 * MIB,
    )


def filled(cache: Cache, store: Store, version: ImageVersion) -> None:
    cache.desire(version)
    cache.start_pull(version.infohash)
    with store.writing(cache.volume(version.infohash)) as target:
        os.pwrite(target.fd, os.urandom(version.size_bytes), 0)
    cache.to_verifying(version.infohash)


def test_the_name_that_jobs_disks_stand_on_was_opened_before_ready(
    store: Store, tmp_path: Path, clock: Any, image: Callable[..., ImageVersion], opened: list[str]
) -> None:
    cache = Cache(state_dir=tmp_path / "state", stores=[store], clock=clock)
    version = image(1)
    filled(cache, store, version)
    opened.clear()
    assert cache.ready(version.infohash).state is State.READY
    happened = list(opened)
    lease = cache.lease(
        version.infohash, holder=holder_of_pid(os.getpid()), user="u", cow_bytes=65536
    )
    told = subprocess.run(
        ["qemu-img", "info", "-U", "--output=json", lease.device],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    name = json.loads(told)["backing-filename"]
    assert name == str(cache.volume(version.infohash).path)
    at = happened.index(f"open {name}")
    record = str(tmp_path / "state" / "volumes")
    ready = max(n for n, one in enumerate(happened) if one.startswith(f"os.rename {record}"))
    assert at < ready, "first opened, then ready"


def test_an_image_that_cannot_be_opened_by_its_name_is_never_ready(
    store: Store, tmp_path: Path, clock: Any, image: Callable[..., ImageVersion]
) -> None:
    cache = Cache(state_dir=tmp_path / "state", stores=[store], clock=clock)
    version = image(1)
    filled(cache, store, version)
    path = cache.volume(version.infohash).path
    seal = store.seal

    def seal_what_has_gone(volume: Any) -> Any:
        if path.is_symlink():
            target = path.readlink()
            path.unlink()
            path.symlink_to(f"{target}-gone")
        else:
            os.truncate(path, 4096)
        return seal(volume)

    store.seal = seal_what_has_gone  # type: ignore[method-assign]
    with suppress(NotFound):
        cache.ready(version.infohash)
    record = cache.record(version.infohash)
    assert record is not None
    assert record.state is not State.READY
    if store.name == "file":
        assert (record.state, record.reason) == (State.FAILED, NodeReason.STORAGE_FAILED)
