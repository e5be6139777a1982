"""Leases over the socket's operations: limits of ordinary users, withdrawn images, bad input."""

from __future__ import annotations

import asyncio
import base64
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from agent.authority import Authority
from agent.cache.cache import Cache
from agent.cache.file import FileStore
from agent.cache.leases import Lease
from agent.cache.records import ImageVersion
from agent.cli.main import main
from agent.launches import Launches
from agent.operations import Operations
from agent.pull.torrents import TorrentFiles
from agent.settings import AgentSettings
from agent.socket.caller import Caller
from agent.socket.server import Send, Undoable
from agent.upkeep import Upkeep
from distrib.errors import Forbidden, LaunchFailed, NotFound, OperatorError, Revoked
from tests.trust.conftest import NOW, World, world

__all__ = ["world"]

MIB = 1 << 20
ALICE = Caller(os.getpid(), os.geteuid(), "alice", admin=False)
ROOT = Caller(os.getpid(), os.geteuid(), "root", admin=True)
HOUR = {"kind": "time", "until": (NOW + timedelta(hours=1)).isoformat()}


class Listener:
    """Hears what would go out on the bus."""

    def event(self, *_: object, **__: object) -> None: ...

    def changed(self) -> None: ...

    def request(self, _wanted: object) -> None: ...


class NoGuests:
    """A launcher that says that it was asked."""

    own_uids = frozenset({0, os.geteuid()})
    release: Any = None

    async def begin(self, lease: Lease, *_: object, **__: object) -> None:
        raise LaunchFailed(f"asked for {lease.lease}")


class Place:
    """An agent's operations over a cache with the site's image on it, ready and active."""

    def __init__(self, root: Path, world: World, **flags: str) -> None:
        self.world = world
        self.authority = Authority(
            root / "state",
            node="wn001",
            trust=world.site_trust,
            max_age_s=72 * 3600,
            clock_skew_s=300,
            clock=lambda: NOW,
        )
        self.authority.site_list = world.site_list()
        self.authority._authentic = True
        self.store = FileStore(root / "cache", 100 * MIB)
        self.cache = Cache(state_dir=root / "state", stores=[self.store], clock=lambda: NOW)
        self.cache.recover()
        image = world.site_image()
        self.infohash = image.infohash
        self.image = f"{image.identifier}@{image.version}"
        self.cache.desire(
            ImageVersion(
                image.infohash, image.identifier, image.version, image.sha512, MIB, 256 * 1024
            ),
            active=True,
        )
        self.cache.start_pull(image.infohash)
        self.cache.to_verifying(image.infohash)
        self.cache.ready(image.infohash)
        self.cache.activate(image.infohash)
        given = {"node": "wn001", "leases_per_user": "2", "cache.cow_bytes": "65536"}
        settings = AgentSettings.load(file=None, flags=given | flags)
        self.operations = Operations(
            settings,
            authority=self.authority,
            cache=self.cache,
            upkeep=lambda resolve: Upkeep(
                cache=self.cache,
                torrents=TorrentFiles(root / "torrents"),
                collector=cast(Any, None),
                scrubber=cast(Any, None),
                damage=cast(Any, None),
                resolve=resolve,
            ),
            launches=lambda giving: Launches(
                settings,
                giving=giving,
                cache=self.cache,
                launcher=cast(Any, NoGuests()),
                reporter=cast(Any, Listener()),
            ),
            reporter=cast(Any, Listener()),
            scrubbed=dict,
            clock=lambda: NOW,
        )

    async def lease(self, caller: Caller = ALICE, **args: Any) -> Any:
        answer = await self.operations.table["lease"](
            caller, {"image": self.image, "holder": HOUR, **args}, cast(Send, None)
        )
        assert isinstance(answer, Undoable)
        return answer


@pytest.fixture
def place(tmp_path: Path, world: World) -> Place:
    return Place(tmp_path, world)


async def test_an_ordinary_user_asks_for_no_more_than_the_site_allows(place: Place) -> None:
    for args in (
        {"cow_bytes": 1 << 40},
        {"scratch_bytes": 1 << 40},
        {"holder": {"kind": "time", "until": "9999-01-01T00:00:00Z"}},
    ):
        with pytest.raises(Forbidden, match="more than user alice may ask for"):
            await place.lease(**args)
    await place.lease(ROOT, holder={"kind": "time", "until": "9999-01-01T00:00:00Z"})


async def test_parallel_requests_count_each_other(place: Place) -> None:
    answers = await asyncio.gather(*(place.lease() for _ in range(6)), return_exceptions=True)
    assert sum(isinstance(one, Forbidden) for one in answers) == 4
    assert len(place.cache.leases()) == 2


async def test_a_lease_that_cannot_be_told_is_released(place: Place) -> None:
    answer = await place.lease()
    assert len(place.cache.leases()) == 1
    await answer.undo()
    await answer.undo()
    assert place.cache.leases() == ()
    assert place.store.instances() == ()


JOB = {"kind": "job", "scheduler": "gridengine", "job": "4711.1", "probe": ["/bin/true"]}
BOB = replace(ALICE, user="bob")


async def test_an_administrator_leases_for_a_job_and_its_owner_launches_in_it(
    place: Place,
) -> None:
    with pytest.raises(Forbidden, match="a lease for another user"):
        await place.lease(user="bob")
    with pytest.raises(Forbidden, match="a lease for a job"):
        await place.lease(holder=JOB)
    given = (await place.lease(ROOT, user="alice", holder=JOB)).result
    assert given["user"] == "alice"
    script = base64.b64encode(b"true\n").decode()

    async def launch(caller: Caller, **args: str) -> Any:
        return await place.operations.table["launch"](
            caller, {"script": script, **args}, cast(Send, None)
        )

    for name in (given["lease"], "gridengine:4711.1"):
        for caller in (ALICE, ROOT):
            with pytest.raises(LaunchFailed, match=given["lease"]):
                await launch(caller, lease=name)
        with pytest.raises(NotFound):
            await launch(BOB, lease=name)
    with pytest.raises(OperatorError, match="an image or a lease"):
        await launch(ALICE)
    assert len(place.cache.leases()) == 1, "the job's lease outlives its launches"
    place.authority.site_list = replace(place.world.site_list(), images=())
    with pytest.raises(Revoked):
        await launch(ALICE, lease=given["lease"])
    with pytest.raises(NotFound):
        await place.operations.table["release"](
            BOB, {"lease": "gridengine:4711.1"}, cast(Send, None)
        )
    released = await place.operations.table["release"](
        ALICE, {"lease": "gridengine:4711.1"}, cast(Send, None)
    )
    assert released == {"released": given["lease"]}


async def test_a_site_may_have_guests_in_jobs_only(tmp_path: Path, world: World) -> None:
    place = Place(tmp_path, world, **{"launch.only_in_jobs": "true"})
    script = base64.b64encode(b"true\n").decode()

    async def launch(caller: Caller, **args: str) -> Any:
        return await place.operations.table["launch"](
            caller, {"script": script, **args}, cast(Send, None)
        )

    own = (await place.lease(ROOT, user="alice")).result
    for caller in (ALICE, ROOT):
        for args in ({"image": place.image}, {"lease": own["lease"]}):
            with pytest.raises(Forbidden, match="only in jobs of its batch system"):
                await launch(caller, **args)
    assert len(place.cache.leases()) == 1, "what is refused leaves no lease"
    of_job = (await place.lease(ROOT, user="alice", holder=JOB)).result
    with pytest.raises(LaunchFailed, match=of_job["lease"]):
        await launch(ALICE, lease="gridengine:4711.1")


@pytest.mark.parametrize("op", ["check", "want"])
async def test_nobody_asks_in_anothers_name_but_root_and_batch_systems(
    place: Place, op: str
) -> None:
    image = replace(place.world.site_image(), audience=("bob",))
    place.authority.site_list = replace(place.world.site_list(), images=(image,))

    async def ask(caller: Caller, **args: str) -> Any:
        return await place.operations.table[op](
            caller, {"image": place.image, **args}, cast(Send, None)
        )

    with pytest.raises(Forbidden, match="alice may not ask what user bob may have"):
        await ask(ALICE, user="bob")
    with pytest.raises(Forbidden, match="not for user alice"):
        await ask(ALICE, user="alice")
    slurm = replace(ALICE, user="slurm")
    for caller, args in ((BOB, {}), (BOB, {"user": "bob"}), (ROOT, {"user": "bob"})):
        assert (await ask(caller, **args))["versions"] == [image.version]
    assert (await ask(slurm, user="bob"))["versions"] == [image.version]
    with pytest.raises(Forbidden, match="not for user alice"):
        await ask(slurm, user="alice")


@pytest.mark.root
async def test_a_user_cannot_have_the_agent_open_files_that_it_wrote_itself(place: Place) -> None:
    nobody = replace(ALICE, uid=65534, user="nobody")
    lease = (await place.lease(nobody)).result
    script = base64.b64encode(b"true\n").decode()
    for caller in (nobody, ROOT):
        with pytest.raises(Forbidden, match="its files are user nobody's own"):
            await place.operations.table["launch"](
                caller, {"script": script, "lease": lease["lease"]}, cast(Send, None)
            )


async def test_an_image_for_some_users_is_not_leased_for_another(place: Place) -> None:
    site_list = place.world.site_list()
    some = tuple(replace(image, audience=("bob",)) for image in site_list.images)
    place.authority.site_list = replace(site_list, images=some)
    with pytest.raises(Forbidden, match="not for user alice"):
        await place.lease(ROOT, user="alice", holder=JOB)
    await place.lease(ROOT, user="bob", holder=JOB)


def pause(place: Place, monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, threading.Event]:
    """Makes instances wait: one event says that it has begun, the other lets it go on."""
    loop, begun, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    make: Callable[..., Any] = place.store.make_instance

    def slow(*args: Any, **room: Any) -> Any:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(30)
        return make(*args, **room)

    monkeypatch.setattr(place.store, "make_instance", slow)
    return begun, go_on


async def test_a_caller_that_goes_while_its_lease_is_made_leaves_none(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = pause(place, monkeypatch)
    asked = asyncio.create_task(place.lease())
    await begun.wait()
    asked.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert place.cache.leases() == ()


async def test_what_is_denied_while_a_lease_is_made_is_not_leased(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = pause(place, monkeypatch)
    asked = asyncio.create_task(place.lease())
    await begun.wait()
    place.authority.site_list = replace(place.world.site_list(), images=())
    go_on.set()
    with pytest.raises(Revoked):
        await asked
    assert place.cache.leases() == ()


async def test_a_denied_image_that_is_still_here_is_revoked(place: Place) -> None:
    place.authority.site_list = replace(place.world.site_list(), images=())
    for image in (place.image, place.image.partition("@")[0]):
        with pytest.raises(Revoked) as caught:
            await place.lease(image=image)
        assert caught.value.exit_status == 3


@pytest.mark.parametrize("pid", ["abc", None, 1e400, -1, 0, 1 << 80, True, [1]])
async def test_a_pid_that_is_none_is_told_in_one_line(place: Place, pid: object) -> None:
    with pytest.raises(OperatorError) as caught:
        await place.lease(holder={"kind": "process", "pid": pid})
    assert "\n" not in caught.value.message


def owner(path: str) -> int:
    return Path(path).stat().st_uid


@pytest.mark.root
async def test_an_ordinary_users_lease_is_its_own(place: Place) -> None:
    nobody = replace(ALICE, uid=65534, user="nobody")
    lease = (await place.lease(nobody, scratch_bytes=4096)).result
    for name in ("device", "scratch"):
        assert owner(lease[name]) == 65534
    assert owner((await place.lease(ROOT)).result["device"]) == os.geteuid()


@pytest.mark.parametrize("seconds", ["1e12", "nan", "inf", "0", "-5"])
def test_a_time_that_is_none_is_one_line(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["lease", "worker", f"--for={seconds}"])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("op", "args"), [("gc", {}), ("gc", {"dry_run": True}), ("verify", {"image": "any"})]
)
async def test_upkeep_is_for_administrators(place: Place, op: str, args: dict[str, Any]) -> None:
    with pytest.raises(Forbidden, match="not for user alice"):
        await place.operations.table[op](ALICE, args, cast(Send, None))


@pytest.mark.root
async def test_a_block_device_is_given_where_it_is_asked_for(place: Place) -> None:
    answer = await place.lease(ROOT, block=True)
    (instance,) = place.store.instances()
    assert answer.result["block"]
    assert answer.result["device"] == str(instance.path)
    assert instance.path.is_block_device()
    await answer.undo()
    assert place.store.instances() == ()
