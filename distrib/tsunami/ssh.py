"""SSH by paramiko: one connection to a host that proved itself, and byte streams to its commands.

Calls block: they belong in worker threads. Rules for keys: docs/formats/tsunami.md. Which ciphers
go first, and how large windows are: docs/decisions/0036-pieces-over-ssh.md.
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from typing import Any, Final

import paramiko

from distrib.errors import DistribError, Forbidden, NetworkError, TimedOut
from distrib.tsunami.keys import HostKeyRefused, HostTrust, Identity

CIPHERS: Final = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "aes128-ctr",
    "aes256-ctr",
)
"""By measured speed. What is not here is not offered."""

MACS: Final = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com")

REKEY_BYTES: Final = 1 << 32
"""RFC 4344 asks for new keys well before 2^36 bytes of AES; each costs a round trip of waiting."""

WINDOW_MIN_BYTES: Final = 2 << 20
WINDOW_MAX_BYTES: Final = 64 << 20
PACKET_BYTES: Final = 1 << 15
"""What OpenSSH sends at most in a packet, whatever is offered."""


class SshKeyRefused(Forbidden):
    """An sshd does not admit our key."""

    code = "ssh-key-refused"


@dataclass(frozen=True)
class Limits:
    """Times in seconds. ``silence_s``: a stream that is silent for so long is given up."""

    connect_s: float = 10.0
    silence_s: float = 30.0
    window_bytes: int = 8 << 20
    rekey_bytes: int = REKEY_BYTES
    ciphers: tuple[str, ...] = CIPHERS


def window_for(link_bps: int, *, round_trip_s: float = 0.02) -> int:
    """The window that keeps a link of so many bytes per second busy, twice over."""
    return min(max(int(2 * link_bps * round_trip_s), WINDOW_MIN_BYTES), WINDOW_MAX_BYTES)


class _Transport(paramiko.Transport):  # type: ignore[misc]
    """Asks for those host keys only that could be believed, in our order of ciphers."""

    def __init__(self, connected: socket.socket, trust: HostTrust, limits: Limits) -> None:
        super().__init__(
            connected,
            default_window_size=limits.window_bytes,
            default_max_packet_size=PACKET_BYTES,
        )
        self._believable = trust.algorithms
        self._preferred_ciphers = limits.ciphers
        self._preferred_macs = MACS
        self.banner_timeout = self.handshake_timeout = self.auth_timeout = limits.connect_s
        self.packetizer.REKEY_BYTES = limits.rekey_bytes
        # A window's worth may be on its way when the other side hears that it is to change keys.
        self.packetizer.REKEY_BYTES_OVERFLOW_MAX = max(1 << 29, 4 * limits.window_bytes)

    @property
    def preferred_keys(self) -> tuple[str, ...]:
        return self._believable


class Stream:
    """Standard input and output of one command."""

    def __init__(self, channel: paramiko.Channel, host: str, limits: Limits) -> None:
        self._channel = channel
        self._host = host
        self._limits = limits
        channel.settimeout(limits.silence_s)

    def read(self, at_most: int | None = None) -> bytes:
        """What there is, empty at the end. Raises TimedOut after too long a silence."""
        try:
            # All at once: paramiko moves what stays in its buffer with each read.
            data: bytes = self._channel.recv(at_most or self._limits.window_bytes)
        except TimeoutError:
            raise TimedOut(
                f"{self._host}: silent for {self._limits.silence_s:.0f} s",
                hint="the host or the way to it is overloaded, or gone",
                host=self._host,
            ) from None
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise _gone(self._host, error) from None
        return data

    def write(self, data: bytes | memoryview) -> None:
        """Send all of it. Raises NetworkError, TimedOut."""
        try:
            self._channel.sendall(data)
        except TimeoutError:
            raise TimedOut(
                f"{self._host}: took nothing for {self._limits.silence_s:.0f} s",
                hint="its disk is too slow or hangs",
                host=self._host,
            ) from None
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise _gone(self._host, error) from None

    def end_input(self) -> None:
        """The command reads the end of its input."""
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self._channel.shutdown_write()

    def complaint(self) -> str:
        """The last line on standard error so far."""
        text = b""
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            while self._channel.recv_stderr_ready() and len(text) < 1 << 16:
                text += self._channel.recv_stderr(1 << 16)
        lines = text.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def status(self) -> int:
        """The exit status of a command whose output has ended; -1 where it has none."""
        if not self._channel.status_event.wait(self._limits.silence_s):
            return -1
        return int(self._channel.exit_status)

    def close(self) -> None:
        """End it, from any thread; who reads is told."""
        self._channel.close()


class Connection:
    """A connection to a host that proved itself and admitted us."""

    def __init__(self, transport: _Transport, host: str, limits: Limits) -> None:
        self._transport = transport
        self._limits = limits
        self.host = host

    @property
    def cipher(self) -> str:
        return str(self._transport.remote_cipher)

    @property
    def is_alive(self) -> bool:
        return bool(self._transport.is_active())

    def run(self, command: str) -> Stream:
        """Begin a command. Raises NetworkError when the host does not let us."""
        try:
            channel = self._transport.open_session(timeout=self._limits.connect_s)
            channel.exec_command(command)
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise _gone(self.host, error) from None
        return Stream(channel, self.host, self._limits)

    def output(self, command: str, given: bytes = b"") -> tuple[int, str]:
        """Exit status and output of a short command."""
        stream = self.run(command)
        try:
            if given:
                stream.write(given)
            stream.end_input()
            text = b""
            while data := stream.read():
                text += data
            return stream.status(), text.decode(errors="replace") or stream.complaint()
        finally:
            stream.close()

    def close(self) -> None:
        """Close it and all its streams; waits for paramiko's thread."""
        self._transport.close()
        if self._transport.is_alive():
            self._transport.join(self._limits.connect_s)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(
    address: str,
    port: int,
    user: str,
    *,
    identity: Identity,
    trust: HostTrust,
    limits: Limits | None = None,
) -> Connection:
    """Connect, have the host prove itself, and log in with our key.

    Raises HostKeyRefused, SshKeyRefused, NetworkError, TimedOut."""
    limits = limits or Limits()
    if not trust.algorithms:
        raise HostKeyRefused(
            f"{address}: no host key is known", hint="add it to the known hosts", host=address
        )
    with contextlib.ExitStack() as undo:
        try:
            connected = socket.create_connection((address, port), limits.connect_s)
            undo.callback(connected.close)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            transport = _Transport(connected, trust, limits)
            connection = Connection(transport, address, limits)
            undo.callback(connection.close)
            transport.start_client(timeout=limits.connect_s)
            trust.check(_shown(transport), host=address)
            transport.auth_publickey(user, identity.key)
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise _told(error, address, port, user) from None
        # Dead ways are noticed by both ends; also those of a stream that waits.
        transport.set_keepalive(max(1, int(limits.silence_s / 3)))
        undo.pop_all()
        return connection


def _shown(transport: _Transport) -> bytes:
    key: Any = transport.get_remote_server_key()
    blob = key.public_blob
    return bytes(blob.key_blob if blob is not None else key.asbytes())


def _told(error: Exception, address: str, port: int, user: str) -> DistribError:
    if isinstance(error, paramiko.AuthenticationException):
        return SshKeyRefused(
            f"{address}: does not admit our key for {user}",
            hint="is it in authorized_keys there? its sshd's log says why",
            host=address,
        )
    if isinstance(error, paramiko.IncompatiblePeer):
        return HostKeyRefused(
            f"{address}: shows no host key of a kind that is known of it, or speaks no cipher of"
            f" ours: {error}",
            hint="compare the known hosts with the host's own keys",
            host=address,
        )
    if isinstance(error, TimeoutError):
        return TimedOut(
            f"{address}: no answer at port {port}", hint="is sshd running there?", host=address
        )
    return _gone(address, error)


def _gone(host: str, error: Exception) -> NetworkError:
    told = getattr(error, "strerror", None) or str(error) or "the connection ended"
    return NetworkError(f"{host}: {told}", hint="is sshd running there?", host=host)
