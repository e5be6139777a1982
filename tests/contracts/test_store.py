"""What every store promises (docs/formats/protocols.md): files, real block devices, real LVM."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.cache.device import DeviceStore
from agent.cache.file import FileStore
from agent.cache.lvm import LvmStore
from agent.cache.store import Store, Volume
from distrib.errors import Conflict, NoSpace, NotFound
from distrib.swarm import IMAGE_FILE
from tests.uml.disks import device_bytes, volume_group

MIB = 1 << 20
SIZE = 3 * MIB
A, B, C, D = (letter * 64 for letter in "abcd")


@dataclass
class Place:
    """Where a store lives; ``open`` starts it again, as an agent does. Three volumes fit."""

    open: Callable[[], Store]
    backend: str
    home: Callable[[str], Path]


@pytest.fixture(
    params=[
        "file",
        pytest.param("device", marks=pytest.mark.root),
        pytest.param("lvm", marks=pytest.mark.uml),
    ]
)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "file":
        root = tmp_path / "cache"
        yield Place(
            open=lambda: FileStore(root, 10 * MIB),
            backend="pread",
            home=lambda infohash: root / "volumes" / infohash,
        )
        return
    if request.param == "lvm":
        links = tmp_path / "lvm"
        with volume_group() as group:
            yield Place(
                open=lambda: LvmStore(group, links, capacity_bytes=10 * MIB),
                backend="posix",
                home=lambda infohash: links / infohash,
            )
        return
    if os.geteuid() != 0:
        pytest.skip("needs root for loop devices")
    links = tmp_path / "devices"
    with ExitStack() as attached:
        devices = [attached.enter_context(LoopDevice(tmp_path / f"disk{n}")) for n in range(3)]
        yield Place(
            open=lambda: DeviceStore(
                devices,
                links,
                instances_dir=tmp_path / "instances",
                instances_capacity_bytes=4 * MIB,
            ),
            backend="posix",
            home=lambda infohash: links / infohash,
        )


class LoopDevice:
    """A loop device over a file of 4 MiB, always detached."""

    def __init__(self, file: Path, size_bytes: int = 4 * MIB) -> None:
        self._file = file
        self._size_bytes = size_bytes

    def __enter__(self) -> Path:
        self._file.write_bytes(os.urandom(self._size_bytes))
        found = subprocess.run(
            ["losetup", "--find", "--show", str(self._file)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        self._device = Path(found.stdout.strip())
        return self._device

    def __exit__(self, *_: object) -> None:
        # The read-only flag of a sealed device outlives the detaching.
        subprocess.run(["blockdev", "--setrw", str(self._device)], check=True)
        subprocess.run(["losetup", "--detach", str(self._device)], check=True)


@pytest.fixture
def store(place: Place) -> Store:
    return place.open()


def fill(store: Store, volume: Volume, data: bytes) -> None:
    with store.writing(volume) as target:
        written = os.pwrite(target.fd, data, 0)
        assert written == len(data)


def head(volume: Volume, count: int) -> bytes:
    with volume.path.open("rb") as image:
        return image.read(count)


def sealed(store: Store, infohash: str, data: bytes = b"") -> Volume:
    volume = store.reserve(infohash, SIZE)
    fill(store, volume, data or os.urandom(SIZE))
    return store.seal(volume)


def test_it_is_a_store(store: Store) -> None:
    assert isinstance(store, Store)
    assert store.name in ("file", "device", "lvm")
    assert store.volumes() == ()
    assert store.instances() == ()
    assert store.space().used_bytes == 0


def test_room_is_taken_before_the_first_byte_and_given_back(store: Store) -> None:
    free = store.space().free_bytes
    volume = store.reserve(A, SIZE)
    assert volume.size_bytes == SIZE
    assert not volume.sealed
    assert store.space().free_bytes <= free - SIZE
    store.remove(volume)
    assert store.volumes() == ()
    assert store.space().free_bytes == free


def test_reserving_again_gives_the_same_volume(store: Store) -> None:
    first = store.reserve(A, SIZE)
    fill(store, first, b"kept")
    again = store.reserve(A, SIZE)
    assert again == first
    assert head(again, 4) == b"kept"
    assert len(store.volumes()) == 1


def test_reserving_again_with_another_size_is_refused(store: Store) -> None:
    store.reserve(A, SIZE)
    with pytest.raises(Conflict):
        store.reserve(A, SIZE - 1)


def test_a_full_store_says_so_beforehand_and_keeps_nothing(place: Place, store: Store) -> None:
    for infohash in (A, B, C):
        store.reserve(infohash, SIZE)
    with pytest.raises(NoSpace):
        store.check_room(SIZE)
    with pytest.raises(NoSpace) as refused:
        store.reserve(D, SIZE)
    assert refused.value.hint
    assert isinstance(refused.value.ids["free_bytes"], int)
    assert not place.home(D).exists()
    assert {v.infohash for v in store.volumes()} == {A, B, C}


def test_it_tells_whether_an_eviction_would_help(store: Store) -> None:
    for infohash in (A, B, C):
        store.reserve(infohash, SIZE)
    store.check_room(SIZE, without=[B])
    store.remove(next(v for v in store.volumes() if v.infohash == B))
    store.reserve(D, SIZE)


def test_libtorrent_gets_a_directory_with_the_image_and_a_held_descriptor(
    place: Place, store: Store
) -> None:
    volume = store.reserve(A, SIZE)
    with store.writing(volume) as target:
        assert target.backend == place.backend
        image = target.directory / IMAGE_FILE
        assert os.path.samestat(os.fstat(target.fd), image.stat())
        with image.open("r+b") as other:
            other.write(b"piece")
        assert os.pread(target.fd, 5, 0) == b"piece"
        held = target.fd
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(held)


def test_what_was_written_is_what_a_sealed_volume_shows(store: Store) -> None:
    data = os.urandom(SIZE)
    volume = sealed(store, A, data)
    assert volume.sealed
    with volume.path.open("rb") as image:
        assert image.read(SIZE) == data
        assert image.read().strip(b"\0") == b"", "what lies past the image's end is zero"


def test_a_sealed_volume_is_not_written(store: Store) -> None:
    volume = sealed(store, A)
    with pytest.raises(Conflict), store.writing(volume):
        pass


def test_sealing_twice_is_sealing_once(store: Store) -> None:
    volume = sealed(store, A)
    assert store.seal(volume) == volume


def test_an_unsealed_volume_can_be_repaired_and_sealed_again(store: Store) -> None:
    volume = store.unseal(sealed(store, A))
    assert not volume.sealed
    fill(store, volume, b"mended")
    assert store.seal(volume).sealed
    assert head(store.volumes()[0], 6) == b"mended"


def test_the_seal_outlives_a_restart(place: Place, store: Store) -> None:
    sealed(store, A)
    store.reserve(B, SIZE)
    found = {v.infohash: v for v in place.open().volumes()}
    assert found[A].sealed
    assert found[A].size_bytes == SIZE
    assert not found[B].sealed


def test_a_restart_sees_what_another_store_left(place: Place, store: Store) -> None:
    volume = sealed(store, A)
    store.make_instance(volume, "l-000001", cow_bytes=65536, scratch_bytes=65536)
    again = place.open()
    assert again.volumes() == store.volumes()
    assert again.instances() == store.instances()
    assert again.space() == store.space()


def test_an_instance_is_a_jobs_own_and_leaves_the_image_alone(store: Store) -> None:
    data = os.urandom(SIZE)
    volume = sealed(store, A, data)
    made = store.make_instance(volume, "l-000001", cow_bytes=MIB, scratch_bytes=65536)
    assert made.infohash == A
    assert made.scratch is not None
    assert device_bytes(made.scratch) == 65536
    assert store.instances() == (made,)
    write = ["qemu-io", "-f", made.format, "-c", "write -q -P 7 0 64k", str(made.path)]
    subprocess.run(write, check=True, capture_output=True)
    same = ["-f", made.format, "-c", f"read -q -P 7 0 {MIB}", str(made.path)]
    read = subprocess.run(["qemu-io", *same], capture_output=True, text=True, check=False)
    assert "Pattern verification failed" in read.stdout, "only the first 64 KiB are the job's"
    with volume.path.open("rb") as image:
        assert image.read(SIZE) == data


def test_an_instance_shows_the_guest_the_image_and_nothing_past_its_end(store: Store) -> None:
    volume = sealed(store, A)
    made = store.make_instance(volume, "l-000001", cow_bytes=65536, scratch_bytes=0)
    info = subprocess.run(
        ["qemu-img", "info", "--output=json", str(made.path)], capture_output=True, check=True
    )
    assert json.loads(info.stdout)["virtual-size"] == SIZE
    assert made.scratch is None


def test_an_instance_takes_its_room_in_the_accounts(store: Store) -> None:
    volume = sealed(store, A)
    before = store.space().used_bytes
    store.make_instance(volume, "l-000001", cow_bytes=MIB, scratch_bytes=MIB)
    assert store.space().used_bytes == before + 2 * MIB
    store.drop_instance("l-000001")
    assert store.space().used_bytes == before
    assert store.instances() == ()


def test_an_instance_without_room_is_refused_before_anything_is_made(store: Store) -> None:
    volume = sealed(store, A)
    before = store.space()
    with pytest.raises(NoSpace):
        store.make_instance(volume, "l-000001", cow_bytes=MIB, scratch_bytes=8 * MIB)
    assert store.instances() == ()
    assert store.space() == before


def test_making_an_instance_again_gives_the_same(store: Store) -> None:
    volume = sealed(store, A)
    first = store.make_instance(volume, "l-000001", cow_bytes=3 * MIB, scratch_bytes=0)
    again = store.make_instance(volume, "l-000001", cow_bytes=3 * MIB, scratch_bytes=0)
    assert again == first


def test_an_instance_needs_a_sealed_volume(store: Store) -> None:
    volume = store.reserve(A, SIZE)
    with pytest.raises(Conflict):
        store.make_instance(volume, "l-000001", cow_bytes=65536, scratch_bytes=0)
    assert store.instances() == ()


def test_a_volume_under_an_instance_stays_as_it_is(store: Store) -> None:
    volume = sealed(store, A)
    store.make_instance(volume, "l-000001", cow_bytes=65536, scratch_bytes=0)
    with pytest.raises(Conflict):
        store.remove(volume)
    with pytest.raises(Conflict):
        store.unseal(volume)
    assert store.volumes()[0].sealed
    store.drop_instance("l-000001")
    store.remove(volume)


def test_removing_what_is_not_there_is_done_already(store: Store) -> None:
    volume = store.reserve(A, SIZE)
    store.remove(volume)
    store.remove(volume)
    store.drop_instance("l-000001")


def test_a_volume_that_is_gone_cannot_be_sealed_or_written(store: Store) -> None:
    volume = store.reserve(A, SIZE)
    store.remove(volume)
    with pytest.raises(NotFound):
        store.seal(volume)
    with pytest.raises(NotFound), store.writing(volume):
        pass


def test_names_never_lead_out_of_the_store(store: Store) -> None:
    with pytest.raises(ValueError, match="not an info-hash"):
        store.reserve("../" + "a" * 61, SIZE)
    with pytest.raises(ValueError, match="not a lease"):
        store.drop_instance("../volumes")


def test_half_made_and_half_removed_things_go_at_the_next_start(place: Place, store: Store) -> None:
    sealed(store, A)
    for suffix in ("new", "gone"):
        left = place.home(f"{B}.{suffix}")
        left.mkdir()
        (left / "rest").write_bytes(b"x")
    again = place.open()
    assert {v.infohash for v in again.volumes()} == {A}
    assert not place.home(f"{B}.new").exists()
    assert not place.home(f"{B}.gone").exists()
