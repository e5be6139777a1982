"""Polls that come at the same moment, on SQLite and on PostgreSQL: one of them is first."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from distrib.trust.testpki import Demo
from tests.head.postgresql import Cluster, private_cluster
from tests.head.stories import Endorser, entry, image_bytes
from tests.subscriptions.server import ListServer
from tests.subscriptions.stories import Follower, codes, open_site


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with private_cluster() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def follower(
    request: pytest.FixtureRequest, tmp_path: Path, pki: Demo, server: ListServer, logged: list[Any]
) -> Iterator[Follower]:
    """A head over either database."""
    url = request.getfixturevalue("cluster").database() if request.param != "sqlite" else None
    made = open_site(
        tmp_path / "a",
        pki.site,
        pki.experiment.trust_directory,
        Ed25519PrivateKey.generate(),
        url=url,
    )
    yield Follower(made, server, Endorser(pki.issued[-1]))
    made.database.close()


def subscribe(follower: Follower, identifier: str, *images: dict[str, Any], name: str) -> Follower:
    """Another subscription of the same head: to a list of its own, or a mirror of one."""
    endorser = Endorser(follower.endorser.issued, identifier=identifier)
    other = Follower(follower.head, follower.server, endorser)
    other.subscribe(url=f"{follower.server.base}/{name}", take="all")
    signed = endorser.sign(*images, version="1")
    follower.server.serve(signed, f"/{name}")
    return other


async def test_two_lists_that_name_the_same_image(follower: Follower) -> None:
    image = str(uuid.uuid4())
    # Versions differ, so that no key of the database would keep them apart.
    rivals = [
        subscribe(
            follower,
            str(uuid.uuid4()),
            entry(image_bytes(number), identifier=image, version=f"{number}.0"),
            name=f"rival-{number}",
        )
        for number in range(4)
    ]
    rows = await asyncio.gather(*(rival.poll() for rival in rivals))
    assert sorted(row.code or "" for row in rows) == ["accepted", *["trust-refused"] * 3], [
        row.text for row in rows
    ]
    assert [codes(row) for row in rows if row.code != "accepted"] == [["uuid-foreign"]] * 3
    assert list(follower.states().values()) == ["expected"]


async def test_two_subscriptions_to_one_list(follower: Follower) -> None:
    identifier = str(uuid.uuid4())
    image = entry(image_bytes(1), identifier=str(uuid.uuid4()))
    mirrors = [
        subscribe(follower, identifier, image, name=f"mirror-{number}") for number in range(4)
    ]
    rows = await asyncio.gather(*(mirror.poll() for mirror in mirrors))
    assert sorted(row.code or "" for row in rows) == ["accepted", *["conflict"] * 3], [
        row.text for row in rows
    ]
    assert [row.identifier for row in rows if row.code == "conflict"] == [None] * 3
    assert list(follower.states().values()) == ["expected"]


async def test_a_list_and_its_next_version(follower: Follower) -> None:
    """Whatever comes first, the newest list is what counts in the end."""
    follower.subscribe()
    image = entry(image_bytes(1), identifier=str(uuid.uuid4()))
    for version in range(1, 6):
        images = [image] if version % 2 else []
        await follower.follows(*images, version=str(version))
        again = asyncio.gather(*(follower.poll() for _ in range(3)))
        assert {row.code for row in await again} == {"unchanged"}
        assert list(follower.states().values()) == ["announced" if images else "revoked"]
