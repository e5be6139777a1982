"""The end of a guest that the hypervisor cannot end: a fake one, since no real QEMU is so stuck."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from agent.launch import channel
from agent.launch.guest import Guest
from agent.launch.hypervisor import Domain, End, Usage
from agent.launch.spec import Limits, RunFiles
from distrib.errors import TimedOut


class FakeStuck:
    """A hypervisor of which no guest ends."""

    holds_files = True

    async def start(self, xml: str, *, suspended: bool = False) -> Domain:
        raise NotImplementedError

    async def wait(self, domain: Domain, *, soon: asyncio.Event | None = None) -> End:
        await asyncio.Event().wait()
        return End.GONE

    async def destroy(self, domain: Domain) -> None:
        raise TimedOut(f"destroy {domain.name}: no answer", hint="see libvirt")

    async def suspend(self, domain: Domain) -> None: ...

    async def resume(self, domain: Domain) -> None: ...

    async def usage(self, domain: Domain) -> Usage | None:
        return None

    async def tell(self, domain: Domain, data: bytes) -> None: ...

    async def orphans(self, *, keep: object) -> tuple[Domain, ...]:
        return ()


@pytest.mark.parametrize("said", [b"ready\n0\n", b"ready\n"], ids=["done", "not-done"])
async def test_a_job_that_was_done_stays_done_where_its_guest_does_not_end(
    tmp_path: Path, said: bytes
) -> None:
    files = RunFiles(tmp_path)
    for path in (files.console, *files.channels):
        channel.create(path)
    files.result.write_bytes(said)
    guest = Guest(
        "wn001",
        "l-000000",
        files,
        Limits(poweroff_s=0.2, wall_s=0.5),
        FakeStuck(),
        began_s=time.monotonic(),
    )
    guest.adopt({"started": 0.0})
    # QEMU holds it as long as it lives.
    with files.result.open("ab"):
        if said == b"ready\n":
            with pytest.raises(TimedOut, match="no answer"):
                await guest.supervise()
        else:
            end = await guest.supervise()
            assert guest.judge(end).exit_status == 0
