"""What jobs took on this node, for the accounting of a batch system: read from the run log."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from agent.launch.runlog import RunLog
from agent.socket.caller import Caller
from agent.socket.request import parse
from agent.socket.server import Args, Operation, Send

MOST = 100
"""So many runs are told at most, the newest."""


class _Runs(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    job: Annotated[str, Field(max_length=200)]
    since: AwareDatetime


class Accounts:
    """The operations by name: ``table`` is what the socket serves."""

    def __init__(self, runlog: RunLog) -> None:
        self._runlog = runlog
        self.table: Mapping[str, Operation] = {"runs": self._runs}

    async def _runs(self, caller: Caller, args: Args, send: Send) -> dict[str, object]:
        request = parse(_Runs, args)
        found = await asyncio.to_thread(self._ended, request.job, request.since)
        mine = [one for one in found if caller.admin or one.get("user") == caller.user]
        return {"runs": mine[-MOST:]}

    def _ended(self, job: str, since: datetime) -> list[dict[str, Any]]:
        return [
            line
            for line in self._runlog.lines(since=since)
            if line.get("event") == "end"
            and line.get("job") == job
            and datetime.fromisoformat(line["start"]) >= since
        ]
