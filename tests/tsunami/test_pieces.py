"""Pieces over a real sshd: what the forced command gives, and what it does not."""

from __future__ import annotations

import contextlib
import os
import shlex
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest

from agent.serving_pieces import COMMENT, key_line
from distrib.errors import DistribError, MessageInvalid, NotFound, Revoked
from distrib.tsunami import protocol
from distrib.tsunami.admitting import install
from distrib.tsunami.client import COMMAND, PieceClient
from distrib.tsunami.keys import HostKeyRefused, HostTrust, Identity
from distrib.tsunami.protocol import Absent, Have, Piece
from distrib.tsunami.ssh import Connection, Limits, SshKeyRefused
from tests.tsunami.shelf import PIECE, PIECES, Held, SocketShelf
from tests.tsunami.sshd import USER, Sshd, make_key, public, running

OTHER = "ee" * 32


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pieces")


@pytest.fixture(scope="module")
def shelf(place: Path) -> Iterator[SocketShelf]:
    """What the agent's socket answers: one image of which some pieces are there."""
    with SocketShelf(place / "agent.sock", place / "image.raw") as running_shelf:
        yield running_shelf


@pytest.fixture(scope="module")
def key(place: Path) -> Path:
    return make_key(place / "key")


@pytest.fixture(scope="module")
def sshd(place: Path, shelf: SocketShelf, key: Path) -> Iterator[Sshd]:
    with running(place / "host") as started:
        started.admit(key_line(public(key), agent_socket=shelf.path))
        yield started


@pytest.fixture
def connection(sshd: Sshd, key: Path) -> Iterator[Connection]:
    with sshd.connect(key, limits=Limits(silence_s=20)) as connected:
        yield connected


@pytest.fixture
def held(shelf: SocketShelf) -> Held:
    """The first half of the image is there."""
    return shelf.hold(range(PIECES // 2))


def opened(connection: Connection, held: Held) -> PieceClient:
    client = PieceClient(connection.run(COMMAND), held.infohash, peer="host")
    client.open(size_bytes=held.size_bytes, piece_bytes=PIECE)
    return client


def pieces(client: PieceClient, count: int) -> list[int]:
    """The next pieces that come, each with the right bytes."""
    found = []
    while len(found) < count:
        message = client.next()
        assert isinstance(message, Piece)
        found.append(message.index)
    return found


def test_pieces_are_given_in_the_order_of_asking(connection: Connection, held: Held) -> None:
    client = opened(connection, held)
    client.get(5, 3)
    client.get(0, 2)
    found = [client.next() for _ in range(5)]
    assert found == [Piece(index, held.piece(index)) for index in (5, 6, 7, 0, 1)]
    client.get(PIECES // 2 - 1, 3)
    assert isinstance(client.next(), Piece)
    assert client.next() == Absent(PIECES // 2, 2)


def test_a_subscriber_gets_pieces_as_they_arrive(connection: Connection, held: Held) -> None:
    client = opened(connection, held)
    client.subscribe(index % 2 == 0 for index in range(PIECES))
    there = [index for index in range(PIECES // 2) if index % 2 == 0]
    assert pieces(client, len(there)) == there
    held.arrive(PIECES - 2, 2)
    assert client.next() == Have(PIECES - 1, 1)
    assert pieces(client, 1) == [PIECES - 2]


def test_a_subscription_that_is_renewed_repeats_nothing(connection: Connection, held: Held) -> None:
    client = opened(connection, held)
    client.subscribe([True] * PIECES)
    assert pieces(client, 1) == [0]
    # The others are on their way, or were sent already: nobody can tell.
    client.subscribe([True] * PIECES)
    assert pieces(client, PIECES // 2 - 1) == list(range(1, PIECES // 2))
    held.arrive(PIECES // 2, 1)
    assert pieces(client, 1) == [PIECES // 2]
    client.get(3, 1)
    assert pieces(client, 1) == [3]


def test_what_is_dropped_is_not_sent_again(connection: Connection, held: Held) -> None:
    client = opened(connection, held)
    client.subscribe(index >= PIECES // 2 for index in range(PIECES))
    client.drop(PIECES // 2, 4)
    client.get(0, 1)
    assert pieces(client, 1) == [0]
    held.arrive(PIECES // 2, 6)
    assert client.next() == Have(PIECES // 2, 4)
    assert pieces(client, 2) == [PIECES // 2 + 4, PIECES // 2 + 5]


def test_the_hashes_of_pieces_come_first(connection: Connection, held: Held) -> None:
    client = opened(connection, held)
    assert client.layer() == b"".join(index.to_bytes(32) for index in range(PIECES))
    client.get(1, 1)
    assert pieces(client, 1) == [1]


def test_an_image_that_is_withdrawn_ends_the_session(connection: Connection, held: Held) -> None:
    client = opened(connection, held)
    client.subscribe([True] * PIECES)
    pieces(client, PIECES // 2)
    held.withdraw()
    with pytest.raises(Revoked, match="not on the site list"):
        client.next()


def test_unknown_and_withdrawn_images_are_refused(connection: Connection, held: Held) -> None:
    with pytest.raises(NotFound):
        PieceClient(connection.run(COMMAND), OTHER, peer="host").open(size_bytes=1, piece_bytes=1)
    held.withdraw()
    with pytest.raises(Revoked):
        opened(connection, held)


def test_no_command_but_one_can_be_run(connection: Connection, held: Held) -> None:
    for asked in ("id", "sh -c id", "cat /etc/passwd", "serve-pieces; id", "../../bin/sh", "-c id"):
        client = PieceClient(connection.run(asked), held.infohash, peer="host")
        client.open(size_bytes=held.size_bytes, piece_bytes=PIECE)
        client.close()
    stream = connection.run("cat /etc/passwd")
    stream.end_input()
    assert stream.read() == b""


def test_no_terminal_shell_file_transfer_or_forwarding(
    sshd: Sshd, key: Path, tmp_path: Path
) -> None:
    with contextlib.closing(paramiko.Transport((sshd.address, sshd.port))) as transport:
        transport.connect(username=USER, pkey=Identity.read(key).key)
        channel = transport.open_session()
        with pytest.raises(paramiko.SSHException):
            channel.get_pty()
        channel = transport.open_session()
        channel.invoke_shell()
        channel.shutdown_write()
        assert channel.recv(100) == b"", "the forced command, which ended with its input"
        with pytest.raises((paramiko.SSHException, paramiko.SFTPError, EOFError)):
            paramiko.SFTPClient.from_transport(transport)
        with pytest.raises(paramiko.ChannelException, match="prohibited"):
            transport.open_channel("direct-tcpip", (sshd.address, sshd.port), ("127.0.0.1", 1))
        with pytest.raises(paramiko.SSHException):
            transport.request_port_forward("127.0.0.1", 0)
    # The client of OpenSSH says of agent and socket forwarding that they are not allowed.
    known = tmp_path / "known"
    known.write_text(sshd.known_hosts_line)
    common = ["-F", "/dev/null", "-i", str(key), "-p", str(sshd.port)]
    common += ["-o", f"UserKnownHostsFile={known}", "-o", "BatchMode=yes"]
    where = f"{USER}@{sshd.address}"
    for options in (
        ["-o", "ExitOnForwardFailure=yes", "-R", "0:localhost:22", "-N"],
        ["-W", f"{sshd.address}:{sshd.port}"],
        ["-o", "ExitOnForwardFailure=yes", "-R", f"{tmp_path / 'sock'}:/x", "-N"],
    ):
        done = subprocess.run(
            ["ssh", *common, *options, where],
            check=False, capture_output=True, timeout=20, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode != 0
        assert b"SSH-2.0" not in done.stdout


def test_an_agent_is_not_forwarded(sshd: Sshd, tmp_path: Path) -> None:
    """The same options, and a command that tells what it was given."""
    key = make_key(tmp_path / "key")
    line = key_line(public(key), agent_socket=Path("/none"))
    options, _, after = line.partition('command="')
    rest = after.partition('"')[2]
    sshd.admit(f'{options}command="echo agent=$SSH_AUTH_SOCK tty=$SSH_TTY"{rest}')
    known = tmp_path / "known"
    known.write_text(sshd.known_hosts_line)
    agent = subprocess.run(["ssh-agent", "-s"], check=True, capture_output=True, text=True).stdout
    sock, pid = (part.split(";")[0] for part in agent.split("=")[1:3])
    try:
        done = subprocess.run(
            ["ssh", "-F", "/dev/null", "-A", "-i", str(key), "-p", str(sshd.port),
             "-o", f"UserKnownHostsFile={known}", f"{USER}@{sshd.address}"],
            check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL,
            env=os.environ | {"SSH_AUTH_SOCK": sock}, timeout=20,
        )  # fmt: skip
    finally:
        os.kill(int(pid), 15)
    assert done.stdout.strip() == "agent= tty="


def frame(length: int, kind: int, body: bytes = b"") -> bytes:
    return struct.pack(">I", length & 0xFFFFFFFF) + bytes([kind]) + body


HELLO = protocol.encode(protocol.Hello(1))


@pytest.mark.parametrize(
    "sent",
    [
        frame(0, 1),
        frame(-1, 1),
        frame(1 << 31, 4),
        frame(protocol.REQUEST_MAX_BYTES + 1, 4),
        b"GET / HTTP/1.1\r\n\r\n",
        protocol.encode(protocol.Get(0, 1)),
        frame(11, 1, b"distribP" + struct.pack(">H", 0)),
        HELLO + HELLO,
        HELLO + frame(2, 2, b"x"),
        HELLO + frame(200, 2, b"../" * 66 + b"x"),
        *(
            b"open" + request
            for request in (
                protocol.encode(protocol.Get(0, 0)),
                protocol.encode(protocol.Get(PIECES, 1)),
                protocol.encode(protocol.Get(0, 0xFFFFFFFF)),
                protocol.encode(protocol.Get(0xFFFFFFFF, 0xFFFFFFFF)),
                protocol.encode(protocol.Subscribe(b"")),
                protocol.encode(protocol.Subscribe(b"\xff" * 100_000)),
                protocol.encode(protocol.Drop(1, PIECES)),
                protocol.encode(protocol.Open(OTHER)),
                frame(1, 77),
            )
        ),
    ],
    ids=range(19),
)
def test_what_breaks_the_protocol_is_refused_and_ends(
    connection: Connection, held: Held, sent: bytes
) -> None:
    begin = b""
    if sent.startswith(b"open"):
        begin, sent = HELLO + protocol.encode(protocol.Open(held.infohash)), sent[4:]
    stream = connection.run(COMMAND)
    stream.write(begin + sent)
    answer = b"".join(iter(stream.read, b""))
    frames = protocol.Frames(max_bytes=protocol.REPLY_MAX_BYTES)
    replies = [protocol.reply(*one) for one in frames.feed(answer)]
    assert isinstance(replies[-1], protocol.Failed)
    assert replies[-1].code == "message-invalid"
    assert not [one for one in replies if isinstance(one, Piece)]
    assert b"Traceback" not in answer
    assert "Traceback" not in stream.complaint()


def test_a_client_that_asks_without_end_is_made_to_wait(connection: Connection, held: Held) -> None:
    client = opened(connection, held)
    # Far more ranges than are kept; answered in turn all the same.
    asking = threading.Thread(target=lambda: [client.get(0, 1) for _ in range(5000)])
    asking.start()
    assert pieces(client, 5000) == [0] * 5000
    asking.join()


def test_a_host_key_that_changed_is_refused(sshd: Sshd, key: Path, tmp_path: Path) -> None:
    other = HostTrust(keys=(public(make_key(tmp_path / "other")),))
    with pytest.raises(HostKeyRefused, match="not the one that is known"):
        sshd.connect(key, trust=other)
    with pytest.raises(HostKeyRefused, match="no host key is known"):
        sshd.connect(key, trust=HostTrust())
    with pytest.raises(HostKeyRefused):
        sshd.connect(key, trust=HostTrust(keys=sshd.trust.keys, revoked=sshd.trust.keys))
    sshd.connect(key).close()


def test_a_certificate_of_the_sites_authority_is_believed(tmp_path: Path) -> None:
    authority, stranger = make_key(tmp_path / "ca"), make_key(tmp_path / "stranger")
    key = make_key(tmp_path / "key")
    with running(tmp_path / "host") as sshd:
        sshd.stop()
        sign(authority, sshd.host_key_file, "-h", "-n", "127.0.0.1,wn001")
        certificate = sshd.host_key_file.with_name("host_key-cert.pub")
        sshd.settings = (f"HostCertificate {certificate}",)
        sshd.start()
        sshd.admit(public(key))
        trust = HostTrust(authorities=(public(authority),), names=("wn001",))
        sshd.connect(key, trust=trust).close()
        for wrong in (
            HostTrust(authorities=(public(stranger),), names=("wn001",)),
            HostTrust(authorities=(public(authority),), names=("wn002",)),
            HostTrust(authorities=trust.authorities, names=trust.names, revoked=(sshd.host_key,)),
        ):
            with pytest.raises(HostKeyRefused):
                sshd.connect(key, trust=wrong)
        sshd.stop()
        sign(authority, sshd.host_key_file, "-h", "-n", "wn001", "-V", "-2d:-1d")
        sshd.start()
        with pytest.raises(HostKeyRefused, match="not valid now"):
            sshd.connect(key, trust=trust)
        sshd.stop()
        sign(authority, sshd.host_key_file, "-n", "wn001")
        sshd.start()
        with pytest.raises(DistribError):
            sshd.connect(key, trust=trust)


def sign(authority: Path, key: Path, *options: str) -> None:
    command = ["ssh-keygen", "-q", "-s", str(authority), "-I", "test", *options, f"{key}.pub"]
    subprocess.run(command, check=True)


def test_keys_are_rotated_without_a_gap(
    sshd: Sshd, shelf: SocketShelf, held: Held, tmp_path: Path
) -> None:
    old, new = make_key(tmp_path / "old"), make_key(tmp_path / "new")
    lines = {key: key_line(public(key), agent_socket=shelf.path) for key in (old, new)}
    others = sshd.keys_file.read_text()
    by_hand = f"{public(make_key(tmp_path / 'admin'))} admin@site"
    sshd.keys_file.write_text(f"{by_hand}\n")
    try:
        install(sshd.keys_file, [lines[old]], comment=COMMENT)
        sshd.connect(old).close()
        with pytest.raises(SshKeyRefused):
            sshd.connect(new)
        install(sshd.keys_file, [lines[old], lines[new]], comment=COMMENT)
        for key in (old, new):
            with sshd.connect(key) as connected:
                opened(connected, held).close()
        install(sshd.keys_file, [lines[new]], comment=COMMENT)
        with pytest.raises(SshKeyRefused):
            sshd.connect(old)
        assert sshd.keys_file.read_text().splitlines() == [by_hand, lines[new]]
    finally:
        sshd.keys_file.write_text(others)


def test_a_users_authority_stands_for_the_keys_that_it_signs(
    sshd: Sshd, shelf: SocketShelf, held: Held, tmp_path: Path
) -> None:
    authority, key = make_key(tmp_path / "ca"), make_key(tmp_path / "key")
    sshd.admit(key_line(public(authority), agent_socket=shelf.path, authority=True))
    with pytest.raises(SshKeyRefused):
        sshd.connect(key)
    sign(authority, key, "-n", USER)
    with sshd.connect(key) as connected:
        opened(connected, held).close()


def test_new_keys_are_agreed_on_in_the_middle(sshd: Sshd, key: Path, held: Held) -> None:
    with sshd.connect(key, limits=Limits(rekey_bytes=200_000)) as connected:
        client = opened(connected, held)
        for _ in range(20):
            client.get(0, PIECES // 2)
            for index in range(PIECES // 2):
                assert client.next() == Piece(index, held.piece(index))


def test_the_line_is_printed_and_installed_by_the_command(tmp_path: Path) -> None:
    key = make_key(tmp_path / "key")
    agent = [sys.executable, "-m", "agent", "--socket", "/run/x.sock", "serve-pieces"]
    printed = subprocess.run(
        [*agent, "--print-line", f"{key}.pub"], check=True, capture_output=True, text=True
    ).stdout
    assert printed.startswith('restrict,command="')
    words = shlex.split(printed.split('"')[1])
    assert words == [sys.executable, "-I", "-m", "agent", "--socket", "/run/x.sock", "serve-pieces"]
    keys = tmp_path / "ssh" / "authorized_keys"
    subprocess.run([*agent, "--install", f"{key}.pub", "--authorized-keys", str(keys)], check=True)
    assert keys.read_text() == printed
    assert keys.stat().st_mode & 0o777 == 0o600
    done = subprocess.run(
        [*agent, "--print-line", str(key)], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "not a public key" in done.stderr
    with pytest.raises(MessageInvalid):
        protocol.request(4711, b"")
