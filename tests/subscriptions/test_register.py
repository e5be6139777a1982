"""The register: what can be followed, by whom it is believed, and where its password is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distrib.errors import ConfigInvalid, Conflict, NotFound
from tests.head.stories import LIST, Endorser, entry, image_bytes
from tests.subscriptions.server import ListServer
from tests.subscriptions.stories import Follower, codes

ONE = "7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f0001"
TWO = "7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f0002"
OTHER_LIST = "0d4b3b8e-54f0-4a53-8a6e-0a4f1a6a2c99"


def one() -> dict[str, Any]:
    return entry(image_bytes(1), identifier=ONE)


def two() -> dict[str, Any]:
    return entry(image_bytes(2), identifier=TWO)


async def test_a_list_has_one_subscription(follower: Follower, server: ListServer) -> None:
    follower.subscribe()
    with pytest.raises(Conflict, match="has that URL"):
        follower.subscribe()
    await follower.follows(one(), version="1")
    twin = Follower(follower.head, server, follower.endorser)
    with pytest.raises(Conflict, match="has the list"):
        twin.subscribe(url=f"{server.base}/mirror", identifier=LIST.upper())
    twin.subscribe(url=f"{server.base}/mirror")
    server.serve(follower.endorser.sign(one(), two(), version="2"), "/mirror")
    row = await twin.poll()
    assert (row.code, row.identifier) == ("conflict", None)
    assert follower.states() == {"0001@1.0.0": "announced"}


async def test_a_subscription_without_a_list_believes_its_own_endorser_alone(
    follower: Follower, server: ListServer, successor: Endorser
) -> None:
    follower.head.catalogue.endorsers.add(
        dn=successor.dn, ca=successor.ca, list_identifier=OTHER_LIST, actor="ops"
    )
    follower.subscribe()
    server.serve(Endorser(successor.issued, identifier=OTHER_LIST).sign(one(), version="1"))
    row = await follower.poll()
    assert (codes(row), row.identifier) == (["endorser-not-authorised"], None)


async def test_unsubscribing_forgets_what_was_only_announced(follower: Follower) -> None:
    follower.subscribe()
    await follower.follows(one(), two(), version="1")
    await follower.approve(ONE, image_bytes(1))
    follower.head.catalogue.subscriptions.remove(follower.id, actor="ops")
    assert follower.states() == {"0001@1.0.0": "approved"}
    with pytest.raises(NotFound):
        await follower.poll()
    # And it may be followed again: the same list brings the rest back.
    follower.subscribe()
    assert (await follower.poll()).code == "unchanged"
    assert follower.states() == {"0001@1.0.0": "approved", "0002@1.0.0": "announced"}


async def test_the_password_is_in_its_file_and_nowhere_else(
    follower: Follower, server: ListServer, logged: list[Any]
) -> None:
    secret = "x-oauth-basic"
    row = follower.subscribe(username="token", password=secret)
    server.serve(follower.endorser.sign(one(), version="1"), auth=f"token:{secret}")
    assert (await follower.poll()).code == "accepted"
    file = follower.head.state_dir / "secrets" / f"subscription-{row.id}"
    assert (file.read_text(), file.stat().st_mode & 0o777) == (secret, 0o600)
    assert file.parent.stat().st_mode & 0o777 == 0o700
    holders = [
        path
        for path in follower.head.state_dir.rglob("*")
        if path.is_file() and secret.encode() in path.read_bytes()
    ]
    assert holders == [file]
    assert secret not in str(logged)
    assert secret not in repr(follower.wanted(username="token", password=secret))
    file.unlink()
    row = await follower.poll()
    assert (row.code, row.reasons["exit"]) == ("config-invalid", 2)
    follower.head.catalogue.subscriptions.remove(row.id, actor="ops")
    # The number is used again, the password is not.
    again = follower.subscribe()
    assert again.id == row.id
    assert not file.exists()


@pytest.mark.parametrize(
    "more",
    [
        {"url": "http://localhost/list"},
        {"username": "token"},
        {"password": "secret"},
        {"username": "a:b", "password": "c"},
        {"ca_file": Path("ca.pem")},
        {"ca_file": Path("/nonexistent.pem")},
        {"url": "file:///list", "ca_file": None, "username": "a", "password": "b"},
    ],
)
def test_what_cannot_be_subscribed_to_is_refused(follower: Follower, more: dict[str, Any]) -> None:
    with pytest.raises(ConfigInvalid):
        follower.subscribe(**more)
    assert follower.head.catalogue.subscriptions.all() == []
