"""Cleaning up that a cancellation must not cut short."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
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
