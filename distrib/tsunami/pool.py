"""Hosts to choose from: added, removed and gone through from a random place in constant time."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Generic, TypeVar

T = TypeVar("T")


class Pool(Generic[T]):
    """A set that can be walked from anywhere."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._items: list[T] = []
        self._place: dict[T, int] = {}

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T, *, inside: bool) -> None:
        """Have it inside, or not."""
        at = self._place.get(item)
        if inside and at is None:
            self._place[item] = len(self._items)
            self._items.append(item)
        elif not inside and at is not None:
            last = self._items.pop()
            if last != item:
                self._items[at] = last
                self._place[last] = at
            del self._place[item]

    def walk(self) -> Iterator[T]:
        """Every item once, from a random one on. The pool may not change meanwhile."""
        count = len(self._items)
        if count:
            start = self._random.randrange(count)
            yield from self._items[start:]
            yield from self._items[:start]
