"""Cleaning up that a cancellation must not cut short."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def to_the_end(cleanup: Coroutine[Any, Any, T]) -> T:
    """Await ``cleanup`` to its end; a cancellation that comes meanwhile acts only after it.

    ``cleanup`` needs a time limit of its own."""
    task = asyncio.create_task(cleanup)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            # Unlike awaiting the task, this does not pass a cancellation on to it.
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        task.exception()
        raise cancelled
    return task.result()


async def done_before(
    work: Coroutine[object, object, None], news: Iterable[asyncio.Event], *, name: str
) -> bool:
    """Whether ``work`` ended before any of ``news`` was set; what has not ended then is cancelled,
    and has ended on return. Raises what ``work`` raises."""
    working = asyncio.create_task(work, name=name)
    waits = [asyncio.create_task(one.wait(), name=f"{name}: news") for one in news]
    try:
        await asyncio.wait({working, *waits}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        for task in (working, *waits):
            task.cancel()
        await to_the_end(_ended(working, *waits))


async def _ended(*tasks: asyncio.Task[Any]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
