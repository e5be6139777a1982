"""The hostile image: it is what the endorser signed while somebody looks, and something else after.

Formats, bombs, backing files and what an image has in it: tests/intake.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distrib.catalogue import approval
from distrib.catalogue.intake import ImageChoice
from distrib.errors import DigestMismatch
from distrib.swarm import IMAGE_FILE
from distrib.swarm.hashing import hash_file
from distrib.swarm.merkle import piece_hash
from tests.head.stories import WORKER, Endorser, Head, entry, image_bytes

GOOD, BAD = image_bytes(1), image_bytes(2)


@pytest.fixture
async def quarantined(head: Head, endorser: Endorser) -> Path:
    """The image's file, checked, and waiting for the site's word."""
    head.catalogue.intake.announce(
        endorser.sign(entry(GOOD)), ImageChoice(size_bytes=len(GOOD)), actor="test"
    )

    async def chunks() -> Any:
        yield GOOD

    await head.catalogue.quarantine.receive(WORKER, "1.0.0", chunks(), actor="test")
    return head.state_dir / "quarantine" / f"{WORKER}@1.0.0" / IMAGE_FILE


def swapping(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    file: Path,
    before: bytes | None,
    after: bytes | None,
) -> None:
    """The file is swapped around one step of the approval."""
    step: Callable[..., Any] = getattr(approval, name)

    def run(*args: Any, **more: Any) -> Any:
        if before is not None:
            file.write_bytes(before)
        try:
            return step(*args, **more)
        finally:
            if after is not None:
                file.write_bytes(after)

    monkeypatch.setattr(approval, name, run)


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        ("make_torrent_and_digest", BAD, GOOD),
        ("make_torrent_and_digest", BAD, None),
        ("make_torrent_and_digest", None, BAD),
        ("make_torrent_and_digest", GOOD[:-1], GOOD),
        ("require_raw", None, BAD),
    ],
)
async def test_bytes_that_are_others_while_the_torrent_is_made(
    head: Head,
    quarantined: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    step: str,
    before: bytes | None,
    after: bytes | None,
) -> None:
    """He swaps them in when they are hashed for the nodes, and back when they are checked."""
    swapping(monkeypatch, step, quarantined, before, after)
    with pytest.raises(DigestMismatch, match="changed in quarantine"):
        await head.catalogue.approval.approve(WORKER, "1.0.0", actor="test")
    head.catalogue.publisher.publish_if_due()
    assert head.site_list().images == ()


async def test_what_is_approved_names_the_bytes_that_were_checked(
    head: Head, quarantined: Path
) -> None:
    row = await head.catalogue.approval.approve(WORKER, "1.0.0", actor="test")
    assert row.sha512 == hashlib.sha512(GOOD).hexdigest()
    # The file that is left is nobody's to write, and nodes would find every byte of another.
    kept = head.catalogue.store.image_file(row.infohash or "")
    assert kept.stat().st_mode & 0o222 == 0
    assert kept.read_bytes() == GOOD


@pytest.mark.parametrize("workers", [None, 2])
def test_the_digest_is_of_what_the_torrent_is_of(tmp_path: Path, workers: int | None) -> None:
    """He writes to the file all the while that it is read."""
    pieces, piece_bytes = 40, 1 << 20
    one, other = (image_bytes(n, piece_bytes) for n in (3, 4))
    by_hash = {piece_hash(content, leaves=64): content for content in (one, other)}
    file = tmp_path / IMAGE_FILE
    file.write_bytes(one * pieces)
    turns = 0
    with file.open("r+b", buffering=0) as stream:

        def swap(_done: int) -> None:
            nonlocal turns
            turns += 1
            stream.seek(0)
            stream.write((one if turns % 2 else other) * pieces)
            stream.seek(turns % pieces * piece_bytes)
            stream.write(other if turns % 2 else one)

        found = hash_file(
            stream.fileno(),
            pieces * piece_bytes,
            piece_bytes=piece_bytes,
            digest=True,
            workers=workers,
            on_progress=swap,
        )
    assert turns > 1
    assert set(found.hashes) == set(by_hash)
    hashed = b"".join(by_hash[one_hash] for one_hash in found.hashes)
    assert found.sha512 == hashlib.sha512(hashed).hexdigest()
