"""An image is withdrawn while its file comes or is looked into: it goes wholly, or stays so."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from distrib.catalogue import preparation, proposals
from distrib.catalogue.digest import sha512_of
from distrib.catalogue.proposal import Proposal
from distrib.db.models import Image
from distrib.errors import Conflict, NotFound
from tests.head.stories import Head

LIMIT_S = 60


class Slow:
    """A digest that is begun, and goes on when it is told to."""

    def __init__(self) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()

    async def __call__(self, path: Path) -> str:
        self.begun.set()
        await self.go_on.wait()
        return await sha512_of(path)


def proposed(head: Head, content: bytes) -> Image:
    digest = hashlib.sha512(content).hexdigest()
    proposal = Proposal(user="alice", title="t", size_bytes=len(content), sha512=digest)
    return head.catalogue.proposals.propose(proposal, actor="alice")


async def receive(head: Head, row: Image, content: bytes) -> int:
    return await head.catalogue.proposals.receive(
        row.identifier, offset=0, data=content, user="alice", actor="alice"
    )


async def withdraw(head: Head, row: Image) -> None:
    await asyncio.to_thread(
        head.catalogue.proposals.withdraw, row.identifier, user="alice", actor="alice"
    )


def left(head: Head, row: Image) -> list[Path]:
    """What is on the head of an image that is gone."""
    with pytest.raises(NotFound):
        head.catalogue.proposals.get(row.identifier, user="alice")
    store = head.catalogue.store
    return [*store.quarantine.iterdir(), *filter(Path.exists, [store.word_file(row.list_sha512)])]


async def test_while_a_file_is_received_it_is_not_taken_away_below_it(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(1 << 20)
    row = proposed(head, content)
    slow = Slow()
    monkeypatch.setattr(proposals, "sha512_of", slow)
    monkeypatch.setattr(proposals, "WITHDRAW_WAIT_S", 0)
    async with asyncio.timeout(LIMIT_S):
        receiving = asyncio.create_task(receive(head, row, content))
        await slow.begun.wait()
        with pytest.raises(Conflict, match="being received"):
            await withdraw(head, row)
        # It is waited for, when that takes no longer than a part does.
        monkeypatch.setattr(proposals, "WITHDRAW_WAIT_S", LIMIT_S)
        withdrawing = asyncio.create_task(withdraw(head, row))
        slow.go_on.set()
        assert await receiving == len(content)
        await withdrawing
    assert left(head, row) == []
    with pytest.raises(NotFound):
        await receive(head, row, content)
    assert left(head, row) == [], "what comes after it is not kept for nobody"


async def test_a_part_that_was_under_way_when_its_image_went_leaves_nothing(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image goes as late as it can: when the part's row was just read."""
    content = bytes(1 << 20)
    row = proposed(head, content)
    of_head = head.catalogue.proposals
    get = of_head.get
    monkeypatch.setattr(proposals, "WITHDRAW_WAIT_S", 0)
    tried: list[str] = []

    def read_then_gone(identifier: str, *, user: str | None) -> Image:
        found = get(identifier, user=user)
        if not tried:
            tried.append(identifier)
            try:
                of_head.withdraw(identifier, user=user, actor="alice")
            except Conflict:
                tried.append("held off")
        return found

    monkeypatch.setattr(of_head, "get", read_then_gone)
    received = await receive(head, row, content[: 1 << 19])
    assert (tried, received) == ([row.identifier, "held off"], 1 << 19)
    monkeypatch.setattr(of_head, "get", get)
    await withdraw(head, row)
    assert left(head, row) == []


async def test_an_image_that_is_looked_into_is_withdrawn_afterwards(
    head: Head, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = await asyncio.to_thread(disk.read_bytes)
    row = proposed(head, content)
    looking = asyncio.get_running_loop().create_future()
    go_on = asyncio.Event()
    here = asyncio.get_running_loop()

    async def slowly(path: Path) -> str:
        # On the collector's own loop.
        here.call_soon_threadsafe(lambda: looking.done() or looking.set_result(None))
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(go_on.wait(), here))
        return await sha512_of(path)

    monkeypatch.setattr(preparation, "sha512_of", slowly)
    async with asyncio.timeout(LIMIT_S):
        await receive(head, row, content)
        head.catalogue.collector.wake()
        await looking
        monkeypatch.setattr(proposals, "WITHDRAW_WAIT_S", 0)
        with pytest.raises(Conflict, match="looked into"):
            await withdraw(head, row)
        monkeypatch.setattr(proposals, "WITHDRAW_WAIT_S", LIMIT_S)
        withdrawing = asyncio.create_task(withdraw(head, row))
        go_on.set()
        await withdrawing
    assert head.catalogue.proposals.of_user("alice") == []
    assert list(head.catalogue.store.quarantine.iterdir()) == []
