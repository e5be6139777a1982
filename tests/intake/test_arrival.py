"""Images on their way into quarantine: over broken lines, from liars, through crashes."""

from __future__ import annotations

import asyncio
import bz2
import contextlib
import gzip
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from distrib.catalogue.examination import ChecksNotPassed
from distrib.db.models import Image, ImageState
from distrib.inspection.sandbox import THROW_AWAY_UID
from tests.head.stories import WORKER, image_bytes
from tests.intake.disks import CLEAN, MIB, SSH_KEY, converted, ext4, partitioned
from tests.intake.stories import REF, Shelf, Site, audit_details
from tests.subscriptions.server import Request, head

CONTENT = image_bytes(7, 3 * MIB)
THIRD = MIB


def test_a_download_goes_on_where_the_line_broke(site: Site) -> None:
    shelf = Shelf(CONTENT, cut_after=[THIRD, THIRD])
    site.server.answers["/worker"] = shelf
    site.announce(CONTENT)

    row = site.collect()

    assert (row.state, row.fault) == ("quarantined", {})
    assert (row.fetched_bytes, row.size_bytes) == (len(CONTENT), len(CONTENT))
    assert row.sha512 == row.endorsed_sha512 == hashlib.sha512(CONTENT).hexdigest()
    assert (site.folder / "image.raw").read_bytes() == CONTENT
    assert [file.name for file in site.folder.iterdir()] == ["image.raw"]
    assert shelf.asked[0] == ""
    starts = [int(asked.removeprefix("bytes=").rstrip("-")) for asked in shelf.asked[1:]]
    assert 0 < starts[0] <= THIRD < starts[1] <= 2 * THIRD


def test_a_server_without_ranges_is_read_from_the_start(site: Site) -> None:
    site.server.answers["/worker"] = Shelf(CONTENT, ranges=False, cut_after=[THIRD])
    site.announce(CONTENT)
    assert site.collect().state == "quarantined"


def test_a_file_that_changed_between_two_requests_is_read_from_the_start(site: Site) -> None:
    old = Shelf(image_bytes(8, len(CONTENT)), cut_after=[THIRD])
    new = Shelf(CONTENT)

    def answer(request: Request) -> Iterator[bytes]:
        yield from (new if old.asked else old)(request)

    site.server.answers["/worker"] = answer
    site.announce(CONTENT)

    assert site.collect().state == "quarantined"
    assert new.asked[0].startswith("bytes=")


def test_a_server_that_hides_the_change_is_found_out_by_the_hash(site: Site) -> None:
    old = Shelf(image_bytes(8, len(CONTENT)), etag='"same"', cut_after=[THIRD])
    new = Shelf(CONTENT, etag='"same"')

    def answer(request: Request) -> Iterator[bytes]:
        yield from (new if old.asked else old)(request)

    site.server.answers["/worker"] = answer
    site.announce(CONTENT)

    assert site.collect().state == "quarantined"
    assert new.asked[-1] == ""


@pytest.mark.parametrize("more", [1, 5 * MIB])
def test_more_bytes_than_endorsed_are_not_read(site: Site, more: int) -> None:
    def answer(_request: Request) -> Iterator[bytes]:
        yield head(200)  # without a length: it must be counted
        yield CONTENT + bytes(more)
        yield from site.server.flood(b"", bytes(MIB))

    site.server.answers["/worker"] = answer
    site.announce(CONTENT)

    row = site.collect()

    assert (row.state, row.fault["code"]) == ("expected", "digest-mismatch")
    assert f"more than the {len(CONTENT)} bytes endorsed" in row.fault["message"]
    assert "again_at" not in row.fault
    assert not site.folder.exists()
    assert len(site.server.requests) == 1
    assert audit_details(site, "file-refused")


def test_a_length_that_differs_is_refused_before_a_byte_is_read(site: Site) -> None:
    site.server.answers["/worker"] = Shelf(CONTENT + b"x")
    site.announce(CONTENT)
    assert "bytes, 3145728 are endorsed" in site.collect().fault["message"]


def test_other_bytes_are_refused_for_good_until_somebody_asks_again(site: Site) -> None:
    forged = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    site.server.answers["/worker"] = Shelf(forged)
    site.announce(CONTENT)
    row = site.collect()
    assert row.fault["code"] == "digest-mismatch"
    assert not site.folder.exists()

    site.server.answers["/worker"] = Shelf(CONTENT)
    site.head.catalogue.taking.take(WORKER, "1.0.0", actor="test")
    assert site.collect().state == "quarantined"


@pytest.mark.parametrize(
    "target", ["http://localhost:1/worker", "file:///etc/shadow", "gopher://localhost/worker"]
)
def test_redirects_lead_to_https_only(site: Site, target: str) -> None:
    site.settings["attempts"] = 2
    site.server.answers["/worker"] = lambda _request: [
        head(302, ("Location", target), ("Content-Length", "0"))
    ]
    site.announce(CONTENT)

    row = site.collect()

    assert row.fault["code"] in {"unreachable", "config-invalid"}
    assert "not https" in row.fault["message"] or "redirect" in row.fault["message"]
    assert row.fault["attempts"] <= 2


def test_attempts_are_bounded_and_told(site: Site) -> None:
    site.settings["attempts"] = 3
    site.server.answers["/worker"] = lambda _request: [head(503, ("Content-Length", "0"))]
    site.announce(CONTENT)

    row = site.collect()

    assert row.fault["attempts"] == 3
    assert "HTTP 503" in row.fault["message"]
    assert len(site.server.requests) == 3


def test_the_token_of_the_list_is_for_its_host_only(site: Site) -> None:
    site.server.answers["/worker"] = Shelf(CONTENT, auth="site:token")
    site.announce(CONTENT)
    assert site.collect().state == "quarantined"

    elsewhere = site.server.base.replace("localhost", "127.0.0.1")
    site.settings["attempts"] = 1
    assert site.head.catalogue.collector._access(site.row()).auth_for(elsewhere) is None


def test_files_of_the_head_are_taken_from_folders_that_are_allowed(
    site: Site, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "worker.raw").write_bytes(CONTENT)
    (shared / "out.raw").symlink_to(tmp_path / "private.raw")
    (tmp_path / "private.raw").write_bytes(CONTENT)
    site.settings |= {"file_roots": (shared,), "attempts": 1}

    for outside in ("private.raw", "shared/../private.raw", "shared/out.raw"):
        site.announce(CONTENT, uri=f"file://{tmp_path}/{outside}")
        assert site.collect().fault["code"] == "forbidden", outside

    os.mkfifo(shared / "pipe")
    for other in ("pipe", "."):
        site.announce(CONTENT, uri=f"file://{shared}/{other}")
        assert site.collect().fault["code"] == "config-invalid", other

    site.announce(CONTENT, uri=f"file://{shared}/worker.raw")
    assert site.collect().state == "quarantined"


def test_a_denial_ends_a_download(site: Site) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def answer(_request: Request) -> Iterator[bytes]:
        yield head(200, ("Content-Length", str(len(CONTENT))))
        yield CONTENT[:THIRD]
        begun.set()
        go_on.wait(10)
        yield CONTENT[THIRD:]

    site.server.answers["/worker"] = answer
    site.announce(CONTENT)

    def deny() -> None:
        begun.wait(10)
        site.head.catalogue.denial.deny(WORKER, "1.0.0", reason="no", actor="test")
        go_on.set()

    thread = threading.Thread(target=deny)
    thread.start()
    site.collect(lambda row: row.state == ImageState.DENIED and not site.folder.exists())
    thread.join()


def killed_when(site: Site, condition: object) -> None:
    """Run the intake in a process of its own, and kill it at once when the condition holds."""
    site.close()
    child = subprocess.Popen([sys.executable, "-m", "tests.intake.half_way", site.state_dir])
    try:
        deadline = time.monotonic() + 20
        while not condition():  # type: ignore[operator]
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        child.kill()
        child.wait()


def running() -> set[str]:
    """The names of the programs that run as the sandbox's user (or as us, if we are not root)."""
    names = set()
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and folder.stat().st_uid in {THROW_AWAY_UID, os.getuid()}:
                names.add((folder / "comm").read_text().strip())
    return names


def test_a_head_killed_in_a_download_goes_on_after_its_restart(site: Site) -> None:
    stopped = threading.Event()
    shelf = Shelf(CONTENT)

    def answer(request: Request) -> Iterator[bytes]:
        if request.headers.get("range"):
            yield from shelf(request)
            return
        yield head(200, ("Content-Length", str(len(CONTENT))), ("ETag", '"one"'))
        yield CONTENT[: 2 * THIRD]
        stopped.wait(20)

    shelf.etag = '"one"'
    site.server.answers["/worker"] = answer
    site.announce(CONTENT)
    part = site.folder / "image.part"
    killed_when(site, lambda: part.exists() and part.stat().st_size >= THIRD)
    stopped.set()
    have_bytes = part.stat().st_size

    row = site.collect()

    assert row.state == "quarantined"
    assert shelf.asked == [f"bytes={have_bytes}-"]


def test_a_head_killed_in_a_conversion_begins_that_again(site: Site) -> None:
    raw = os.urandom(8 * MIB)
    packed = bz2.compress(raw, 1)
    shelf = Shelf(packed)
    site.server.answers["/worker"] = shelf
    site.announce(packed, **{"hv:format": "raw.bz2"})
    unpacked = site.folder / "image.unpacked"
    killed_when(site, lambda: unpacked.exists() and unpacked.stat().st_size > 0)
    assert (site.folder / "image.endorsed").exists()
    # The tool went with the head that started it.
    deadline = time.monotonic() + 5
    while "bzip2" in running() and time.monotonic() < deadline:
        os.sched_yield()
    assert "bzip2" not in running()

    row = site.collect()

    assert (row.state, row.sha512) == ("quarantined", hashlib.sha512(raw).hexdigest())
    assert row.endorsed_sha512 == hashlib.sha512(packed).hexdigest()
    assert len(shelf.asked) == 1
    assert [file.name for file in site.folder.iterdir()] == ["image.raw"]


@pytest.fixture
def tiny(site: Site) -> Iterator[Site]:
    """The site's quarantine on a disk of 80 MiB, of which 64 are kept free."""
    quarantine = site.state_dir / "quarantine"
    quarantine.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", quarantine], check=True)
    try:
        yield site
    finally:
        subprocess.run(["umount", quarantine], check=True)


def test_a_full_disk_is_one_clear_fault_and_nothing_stays(tiny: Site) -> None:
    tiny.settings["attempts"] = 1
    packed = gzip.compress(bytes(32 * MIB))
    tiny.server.answers["/worker"] = Shelf(packed)
    tiny.announce(packed)

    row = tiny.collect()

    assert (row.state, row.fault["code"]) == ("expected", "no-space")
    assert "unpacks to more than the" in row.fault["message"]
    assert not list((tiny.state_dir / "quarantine").iterdir())


def test_a_download_that_cannot_fit_is_not_begun(tiny: Site) -> None:
    tiny.settings["attempts"] = 1
    content = image_bytes(9, 20 * MIB)
    tiny.server.answers["/worker"] = Shelf(content)
    tiny.announce(content)

    assert tiny.collect().fault["code"] == "no-space"
    assert not tiny.server.requests
    assert not list((tiny.state_dir / "quarantine").iterdir())


def guest(folder: Path, *, key: bytes = b"") -> Path:
    files = CLEAN | ({"root/.ssh/authorized_keys": key} if key else {})
    return partitioned(folder / "guest.raw", ext4(folder / "root.img", files))


def test_both_hashes_are_in_the_site_list(site: Site, tmp_path: Path) -> None:
    raw = guest(tmp_path)
    qcow2 = converted(raw, "qcow2").read_bytes()
    site.server.answers["/worker"] = Shelf(qcow2)
    site.announce(qcow2, **{"hv:format": "QCOW2"})
    assert site.collect().state == "quarantined"
    assert set(site.checks().values()) == {"pass"}

    catalogue = site.head.catalogue
    asyncio.run(catalogue.approval.approve(WORKER, "1.0.0", actor="test"))
    catalogue.publisher.publish_if_due()

    [listed] = site.head.site_list().images
    assert listed.sha512 == hashlib.sha512(raw.read_bytes()).hexdigest()
    assert listed.size_bytes == raw.stat().st_size
    assert listed.origin.sha512 == hashlib.sha512(qcow2).hexdigest()
    assert listed.origin.size_bytes == len(qcow2)


def test_a_site_may_refuse_what_its_checks_did_not_pass(site: Site, tmp_path: Path) -> None:
    site.settings["on_fail"] = "refuse"
    content = guest(tmp_path, key=SSH_KEY).read_bytes()
    site.server.answers["/worker"] = Shelf(content)
    site.announce(content)
    assert site.collect().state == "quarantined"
    assert site.checks()["authorized-keys"] == "fail"
    approval = site.head.catalogue.approval

    with pytest.raises(ChecksNotPassed, match=r"authorized-keys \(fail\)"):
        asyncio.run(approval.approve(WORKER, "1.0.0", actor="test"))
    asyncio.run(approval.approve(WORKER, "1.0.0", force="for the training", actor="test"))

    [approved] = audit_details(site, "image-approved")
    assert approved["checks_not_passed"] == {"authorized-keys": "fail"}
    assert approved["force"] == "for the training"
    assert site.row().state == "approved"


def test_what_somebody_has_in_hand_is_not_tried_for_again_and_again(site: Site) -> None:
    site.server.answers["/worker"] = Shelf(CONTENT)
    site.announce(CONTENT)
    looks = 0

    def passed(_: Image) -> bool:
        nonlocal looks
        looks += 1
        return looks > 10

    with site.head.catalogue.quarantine.alone(REF), capture_logs() as told:
        assert site.collect(passed).state == "expected"

    assert [one["event"] for one in told if one.get("image") == REF] == []
    assert site.collect().state == "quarantined"
