"""Following a rollout: every change as it comes, over lost connections, until it ends."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

from distrib.cli.client import ApiClient, path_of
from distrib.errors import DistribError, NetworkError, Partial, TimedOut

ENDED = frozenset({"done", "failed", "aborted"})
_GIVE_UP_S = 60.0
_RETRY_S = 1.0


def follow(client: ApiClient, rollout: str, *, timeout_s: float | None) -> Iterator[dict[str, Any]]:
    """The rollout now, and at each change, up to its end.

    A head that is gone for less than a minute is waited for. Raises TimedOut after ``timeout_s``
    (the rollout itself goes on), and what the API raises.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    # A thread, because reading a stream cannot be given up in time otherwise.
    news: queue.Queue[dict[str, Any] | DistribError] = queue.Queue()
    enough = threading.Event()
    threading.Thread(target=_read, args=(client, rollout, news, enough), daemon=True).start()
    try:
        while True:
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            item = news.get(timeout=left_s)
            if isinstance(item, DistribError):
                raise item
            yield item
            if item["state"] in ENDED:
                return
    except queue.Empty:
        raise TimedOut(
            f"rollout {rollout} has not ended after {timeout_s:g} s",
            hint=f"it goes on: distrib rollout status {rollout} --watch",
            rollout=rollout,
        ) from None
    finally:
        enough.set()


def verdict(rollout: dict[str, Any]) -> DistribError | None:
    """What is to be said of a rollout that has ended; None if it is done on every online node."""
    summary, name = rollout["summary"], rollout["id"]
    failed, targets = summary["failed"], summary["targets"]
    waiting = summary.get("waiting", 0)
    at_fault = {"failed", "waiting"} if rollout["state"] == "failed" else {"failed"}
    rows = [row for row in rollout["nodes"] if row["state"] in at_fault]
    reasons = sorted({str(row["reason"]) for row in rows if row["reason"]})
    if rollout["state"] == "aborted":
        return Partial(
            f"rollout {name} was aborted: {summary['ready']} of {targets} nodes are ready",
            hint="what is on the nodes stays",
            rollout=name,
        )
    if rollout["state"] == "done" and not failed:
        return None
    kind = TimedOut if reasons == ["deadline"] else Partial
    return kind(
        f"rollout {name}: {failed} of {targets} nodes failed, {summary['ready']} are ready"
        + (f", {waiting} only wait" if waiting else "")
        + (f" ({', '.join(reasons)})" if reasons else ""),
        hint=f"distrib rollout status {name} names them",
        rollout=name,
    )


def _read(
    client: ApiClient,
    rollout: str,
    news: queue.Queue[dict[str, Any] | DistribError],
    enough: threading.Event,
) -> None:
    lost_at: float | None = None
    while not enough.is_set():
        try:
            for document in client.lines(path_of("rollouts", rollout, "watch")):
                lost_at = None
                news.put(document)
                if document["state"] in ENDED:
                    return
        except NetworkError as error:
            lost_at = lost_at or time.monotonic()
            if time.monotonic() - lost_at > _GIVE_UP_S:
                news.put(error)
                return
        except DistribError as error:
            news.put(error)
            return
        enough.wait(_RETRY_S)
