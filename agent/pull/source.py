"""The protocol between the verified store of a pull and what brings its pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class PieceSink(Protocol):
    """The verified store of one image, as a source sees it: hashes every piece it is offered."""

    @property
    def infohash(self) -> str: ...

    @property
    def piece_bytes(self) -> int: ...

    @property
    def size_bytes(self) -> int: ...

    def missing(self) -> Sequence[int]:
        """Indices of the pieces that are not verified yet, ascending."""
        ...

    async def offer(self, index: int, data: bytes) -> bool:
        """Hash ``data`` and keep it as piece ``index``; False when the hash does not hold."""
        ...

    async def complete(self) -> None:
        """Return once nothing is missing."""
        ...


@runtime_checkable
class Source(Protocol):
    """Brings pieces by one transport. It can waste time, never corrupt."""

    @property
    def name(self) -> str:
        """The transport's name in settings and reports."""
        ...

    async def bring(self, sink: PieceSink) -> None:
        """Bring pieces until none is missing.

        Ends early only by raising a DistribError that says why it can bring no more, or by
        cancellation, after which it uses the sink no more."""
        ...
