"""What `distrib-agent doctor` finds: every fault is really made."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent import examining
from agent.cache import loops, lvm_findings
from agent.cli import doctor
from agent.cli.doctor import ask_agent
from agent.examining import examine
from agent.settings import AgentSettings
from distrib.cli.rollout import rollout
from tests.farm.process import BIN

FORMAT = Path(__file__).parents[2] / "docs" / "formats" / "doctor.md"
MIB = 1 << 20
DAY = timedelta(days=1)


def certify(
    cert: Path, key: Path, *, begins: timedelta = -DAY, ends: timedelta = 365 * DAY
) -> None:
    """A certificate that signs itself, for 127.0.0.1."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    made = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(address, critical=False)
        .sign(private, hashes.SHA256())
    )
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    key.chmod(0o600)


class Ground:
    """A node that is well, but for the broker, which is not there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state, self.cache = root / "state", root / "cache"
        for directory in (self.state, self.cache / "instances", root / "trust"):
            directory.mkdir(parents=True)
        (root / "trust" / "ca.pem").write_text("a CA")
        (self.state / "site-list.smime").write_text("signed")
        certify(root / "cert.pem", root / "key.pem")
        certify(root / "ca.pem", root / "ca.key")
        self.flags: dict[str, object] = {
            "node": "wn001",
            "state_dir": str(self.state),
            "cache.directory": str(self.cache),
            "cache.capacity_bytes": str(MIB),
            "bus.host": "127.0.0.1",
            "bus.port": "1",
            "bus.ca": str(root / "ca.pem"),
            "bus.cert": str(root / "cert.pem"),
            "bus.key": str(root / "key.pem"),
            "trust.ca_directory": str(root / "trust"),
            "launch.hypervisor": "qemu",
        }

    def codes(self, **more: object) -> list[str]:
        """What is found, but for the broker and what this machine has not."""
        flags = self.flags | {key.replace("__", "."): value for key, value in more.items()}
        settings = AgentSettings.load(file=None, flags=flags, environ={})
        found = examine(settings)
        assert all(one.command and one.text and one.subject for one in found)
        return [one.code for one in found if one.code not in ("broker-unreachable", "disk-full")]


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path)


def test_a_node_that_is_well_has_no_findings(ground: Ground) -> None:
    assert ground.codes() == []


def test_a_state_directory_that_is_not_there(ground: Ground) -> None:
    assert ground.codes(state_dir=str(ground.root / "none")) == ["state-dir-missing"]


def test_directories_that_others_may_write_into(ground: Ground) -> None:
    ground.state.chmod(0o777)
    ground.cache.chmod(0o775)
    assert sorted(ground.codes()) == ["cache-dir-permissions", "state-dir-permissions"]


@pytest.mark.root
def test_a_state_directory_of_another_user(ground: Ground) -> None:
    os.chown(ground.state, 12345, -1)
    assert ground.codes() == ["state-dir-permissions"]


def test_state_files_that_cannot_be_read(ground: Ground) -> None:
    (ground.state / "volumes").mkdir()
    (ground.state / "volumes" / "aa.json").write_bytes(b'{"v": 1, "infoh')
    (ground.state / "volumes" / "bb.json.bad").write_bytes(b"")
    assert ground.codes() == ["state-file-broken", "state-file-set-aside"]


def test_a_resume_file_that_cannot_be_read_may_be_removed(ground: Ground) -> None:
    (ground.state / "resume").mkdir()
    file = ground.state / "resume" / "aa.json"
    file.touch()
    settings = AgentSettings.load(file=None, flags=ground.flags, environ={})
    (command,) = (one.command for one in examine(settings) if one.code == "state-file-broken")
    assert command == f"rm {file}"
    subprocess.run(command.split(), check=True)
    assert ground.codes() == []


def test_a_quota_that_the_disk_cannot_keep(ground: Ground) -> None:
    assert ground.codes(cache__capacity_bytes=str(1 << 60)) == ["quota-beyond-disk"]


@contextmanager
def tmpfs(at: Path, options: str) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(at)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(at)], check=True)


@pytest.mark.root
def test_a_cache_on_a_file_system_that_became_read_only(ground: Ground) -> None:
    with tmpfs(ground.cache, "size=2m,ro,mode=755"):
        assert ground.codes() == ["cache-read-only"]


@pytest.mark.root
def test_a_cache_on_a_full_file_system(ground: Ground) -> None:
    with tmpfs(ground.cache, "size=2m,mode=755"):
        (ground.cache / "others").write_bytes(bytes(2 * MIB))
        settings = AgentSettings.load(file=None, flags=ground.flags, environ={})
        assert "disk-full" in [one.code for one in examine(settings)]


def test_tools_that_are_not_there(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examining, "tool_path", lambda: str(ground.root))
    assert ground.codes() == ["tool-missing"] * 3


def test_a_device_of_the_pool_that_is_not_there(ground: Ground) -> None:
    file = ground.root / "no-device"
    file.write_bytes(b"")
    assert ground.codes(cache__devices=(str(file),)) == ["device-missing"]


@pytest.mark.root
def test_a_loop_device_that_no_lease_has(ground: Ground) -> None:
    backing = ground.cache / "instances" / "l-1" / "root.raw"
    backing.parent.mkdir()
    backing.write_bytes(bytes(MIB))
    device = loops.attach(backing)
    try:
        assert ground.codes() == ["loop-leaked"]
        (backing.parent / "instance.json").write_text("{}")
        assert ground.codes() == []
        (backing.parent / "instance.json").unlink()
        backing.unlink()
        assert ground.codes() == ["loop-leaked"]
    finally:
        loops.detach(device)


def test_hardware_virtualisation_that_is_not_there_or_does_not_work(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    kvm = ground.root / "kvm"
    monkeypatch.setattr(examining, "KVM", kvm)
    assert ground.codes(launch__hypervisor="kvm") == ["no-kvm"]
    assert ground.codes(launch__hypervisor="auto") == ["no-kvm"]
    kvm.touch()
    monkeypatch.setattr("agent.launch.accelerator.KVM_DEVICE", kvm)
    remembered = {"v": 1, "boot_id": boot_id, "kvm": False}
    (ground.state / "accelerator.json").write_text(json.dumps(remembered))
    assert ground.codes(launch__hypervisor="auto") == ["kvm-broken"]


@pytest.mark.parametrize(
    ("begins", "ends", "code"),
    [
        (-DAY, 3 * DAY, "certificate-expiring"),
        (-3 * DAY, -DAY, "certificate-expired"),
        (DAY, 300 * DAY, "certificate-early"),
    ],
)
def test_certificates_by_their_dates(
    ground: Ground, begins: timedelta, ends: timedelta, code: str
) -> None:
    certify(ground.root / "cert.pem", ground.root / "key.pem", begins=begins, ends=ends)
    assert ground.codes() == [code]


def test_certificates_and_keys_that_are_of_no_use(ground: Ground) -> None:
    (ground.root / "key.pem").chmod(0o644)
    (ground.root / "cert.pem").write_text("nothing")
    (ground.root / "trust" / "ca.pem").unlink()
    assert sorted(set(ground.codes())) == [
        "broker-refused",
        "certificate-broken",
        "key-readable",
        "trust-empty",
    ]
    (ground.root / "cert.pem").unlink()
    assert "certificate-missing" in ground.codes()


def test_a_clock_that_went_back(ground: Ground) -> None:
    later = time.time() + 3600
    os.utime(ground.state / "site-list.smime", (later, later))
    assert ground.codes() == ["clock-behind"]


def test_a_site_list_that_is_old_too_old_or_never_came(ground: Ground) -> None:
    file = ground.state / "site-list.smime"
    for hours, code in ((7, "site-list-old"), (80, "site-list-stale")):
        then = time.time() - hours * 3600
        os.utime(file, (then, then))
        assert ground.codes() == [code]
    file.unlink()
    assert ground.codes() == ["site-list-missing"]


def test_a_broker_that_does_not_answer_or_is_another(ground: Ground) -> None:
    settings = AgentSettings.load(file=None, flags=ground.flags, environ={})
    assert [one.code for one in examine(settings)] == ["broker-unreachable"]
    with socket.create_server(("127.0.0.1", 0)) as plain:
        port = plain.getsockname()[1]

        def talk() -> None:
            connection, _ = plain.accept()
            connection.sendall(b"this is no TLS\r\n" * 4)
            connection.close()

        server = threading.Thread(target=talk)
        server.start()
        assert ground.codes(bus__port=str(port)) == ["broker-refused"]
        server.join()


def test_what_a_running_agent_says(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    image = {"identifier": "7cb7", "version": "1", "text": "why"}
    report: dict[str, Any] = {
        "node": "wn001",
        "refused": {"envelope-signature": 3},
        "images": [
            image | {"state": "failed", "reason": "no-space"},
            image | {"state": "leased", "reason": "hash-failed"},
            image | {"state": "ready"},
        ],
    }
    answer = {"v": 1, "ok": True, "result": {"report": report}}
    assert [one.code for one in ask_agent(path)] == ["agent-down"]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def talk() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(json.dumps(answer).encode() + b"\n")

        server = threading.Thread(target=talk)
        server.start()
        found = list(ask_agent(path))
        server.join()
    assert [one.code for one in found] == ["refused", "image-failed", "image-damaged"]
    words = found[1].command.partition("  #")[0].split()
    assert words[:3] == ["distrib", "rollout", "start"]
    assert rollout.commands["start"].make_context("start", words[3:]).params["image"] == "7cb7@1"


def test_the_command_works_while_the_agent_is_down(ground: Ground) -> None:
    config = ground.root / "agent.toml"
    flags = ground.flags | {"cache.capacity_bytes": MIB, "bus.port": 1}
    config.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in flags.items()))
    command = [BIN / "distrib-agent", "--socket", ground.root / "none", "doctor"]
    done = subprocess.run(
        [*command, "--config", config, "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 6, done.stderr
    codes = [one["code"] for one in json.loads(done.stdout)["findings"]]
    assert codes[0] == "agent-down"
    assert "broker-unreachable" in codes
    told = subprocess.run(
        [*command, "--config", config], capture_output=True, text=True, check=False
    )
    assert told.stdout.count("    run: ") == len(codes)


def test_the_page_names_every_finding() -> None:
    source = "".join(
        Path(module).read_text()
        for module in (examining.__file__, doctor.__file__, lvm_findings.__file__)
    )
    page = FORMAT.read_text()
    for match in re.findall(r'Finding\(\s*"([a-z-]+)"', source):
        assert f"| `{match}` |" in page, match
