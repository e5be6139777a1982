"""``distrib image take``, ``checks``, ``show`` and ``approve --force``, over the API."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import update

from distrib.cli.main import main
from distrib.db.intake_models import ImageCheck
from tests.head.stories import WORKER, entry, serve
from tests.intake.disks import CLEAN, SSH_KEY, converted, ext4, partitioned
from tests.intake.stories import REF, Shelf, Site


def distrib(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """A command: its exit status, output and errors."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def client(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings of a client; the head's address comes in when it serves."""
    config = tmp_path / "client.toml"
    monkeypatch.setenv("DISTRIB_CONFIG", str(config))
    return config


def write_config(site: Site, config: Path) -> None:
    config.write_text(
        f'url = "{site.head.url}"\nca = "{site.head.ca_file}"\ntoken = "{site.head.token()}"\n'
    )


def test_an_operator_sees_what_is_in_an_image_before_approving_it(
    site: Site, tmp_path: Path, client: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.settings["on_fail"] = "refuse"
    key = {"root/.ssh/authorized_keys": SSH_KEY}
    raw = partitioned(tmp_path / "guest.raw", ext4(tmp_path / "root.img", CLEAN | key))
    file = converted(raw, "qcow2")
    signed = tmp_path / "list.smime"
    signed.write_bytes(site.endorser.sign(entry(file.read_bytes(), **{"hv:format": "QCOW2"})))
    with serve(site.head):
        write_config(site, client)
        status, out, err = distrib(
            capsys, "image", "add", file, "--list", signed, "--no-approve", "--json"
        )
        assert status == 0, err
        assert json.loads(out)["state"] == "quarantined"

        status, out, _ = distrib(capsys, "image", "checks", REF)
        assert status == 0
        assert "partition 1 (ext): /root/.ssh/authorized_keys" in out
        _, out, _ = distrib(capsys, "image", "checks", REF, "--json")
        outcomes = {one["name"]: one["outcome"] for one in json.loads(out)["checks"]}
        assert outcomes["authorized-keys"] == "fail"
        assert outcomes["shadow-passwords"] == "pass"
        _, out, _ = distrib(capsys, "image", "show", WORKER)
        assert "\ncheck authorized-keys: fail" in out

        status, _, err = distrib(capsys, "image", "approve", REF)
        assert status == 3
        assert "authorized-keys (fail)" in err
        # As an older distrib might have left it.
        with site.head.database.transaction() as session:
            session.execute(update(ImageCheck).values(outcome="pass", text="nothing found"))
        status, out, _ = distrib(capsys, "image", "checks", WORKER, "--again")
        assert status == 0
        assert "partition 1 (ext): /root/.ssh/authorized_keys" in out
        assert site.head.actions().count("image-checked") == 2
        assert (site.folder / "image.raw").stat().st_mode & 0o777 == 0o600

        status, out, _ = distrib(capsys, "image", "approve", REF, "--force", "ours")
        assert status == 0
        assert "approved" in out
        status, _, err = distrib(capsys, "image", "checks", REF, "--again")
        assert (status, "is approved, not quarantined" in err) == (2, True)


def test_an_image_is_taken_and_waited_for(
    site: Site, client: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.server.answers["/worker"] = Shelf(b"something else")
    site.announce(b"x" * 4096)
    with serve(site.head):
        write_config(site, client)
        status, _, err = distrib(capsys, "image", "take", WORKER, "--wait", "--timeout", "0")
        assert (status, "is not here after 0 s" in err) == (7, True)
    site.collect()
    with serve(site.head):
        write_config(site, client)
        _, out, _ = distrib(capsys, "image", "show", WORKER)
        assert "the file is not the endorsed one" in out
