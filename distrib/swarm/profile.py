"""libtorrent's settings for a farm's LAN, in one table with the reason for each.

Names and meanings are those of libtorrent's settings_pack (2.1). Buffers follow the bandwidth-delay
product of the link: with the default 500 KiB, HAVE and REQUEST messages wait 200 ms behind payload
on a 20 Mbit/s link, and each hop of a relay chain loses rate.
"""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True)
class Link:
    """What buffers are sized for: rate in bytes per second, round trip in seconds."""

    rate_bps: int
    round_trip_s: float = 0.002

    @property
    def in_flight_bytes(self) -> int:
        """What keeps the link full through one round trip and one tick of the disk (20 ms)."""
        return int(self.rate_bps * (self.round_trip_s + 0.02))


DEFAULT_LINK = Link(rate_bps=125 * 1000 * 1000)
"""1 Gbit/s Ethernet, where the inventory says nothing."""


def lan_profile(
    *, address: str, port: int, link: Link = DEFAULT_LINK, connections: int = 200
) -> dict[str, str | int | bool]:
    """The settings of one session.

    ``address`` is listened on and connected from (an agent owns one address); ``connections``
    bounds all peers of the session. What is left out stays at libtorrent's default.
    """
    # Half of it waits here, the other half in the socket.
    watermark = min(max(link.in_flight_bytes // 2, 32 * KIB), 8 * MIB)
    pipeline = min(max(2 * link.in_flight_bytes // (16 * KIB), 16), 2000)
    return {
        "listen_interfaces": f"{address}:{port}",
        # A port that is taken is an error: the next one would be announced to nobody.
        "max_retry_port_bind": 0,
        "outgoing_interfaces": address if address not in ("0.0.0.0", "::") else "",  # noqa: S104
        # Peers come from the controller alone: nothing is discovered, announced or mapped.
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        # uTP yields to TCP and keeps one UDP socket busy: on a LAN it only costs.
        "enable_incoming_utp": False,
        "enable_outgoing_utp": False,
        # Obfuscation copies every buffer; secrecy inside a farm is the network's.
        "in_enc_policy": 2,
        "out_enc_policy": 2,
        "send_buffer_watermark": watermark,
        "send_buffer_low_watermark": max(watermark // 4, 16 * KIB),
        "send_buffer_watermark_factor": 50,
        **_socket_buffers(link),
        "max_out_request_queue": pipeline,
        "max_allowed_in_request_queue": 4000,
        "request_queue_time": 3,
        "whole_pieces_threshold": 1,
        "initial_picker_threshold": 0,
        "unchoke_slots_limit": -1,
        "unchoke_interval": 1,
        "optimistic_unchoke_interval": 1,
        "connections_limit": connections,
        "connection_speed": 200,
        "listen_queue_size": 100,
        "peer_connect_timeout": 5,
        # Who connects to whom is the plan's: whoever was left is not dialled again by libtorrent,
        # and who has the image waits to be asked (agent/pull/machine.py dials again in time).
        "min_reconnect_time": 60,
        "seeding_outgoing_connections": False,
        "max_failcount": 100,
        # A peer that went dark without a FIN is given up after this silence.
        "peer_timeout": 10,
        "handshake_timeout": 5,
        "strict_end_game_mode": True,
        "checking_mem_usage": 2048,
        "hashing_threads": 2,
        "max_queued_disk_bytes": 64 * MIB,
        "alert_queue_size": 20_000,
        # A parent that completes says first that it only uploads, then that it has the last piece:
        # a child that has all the others would take it for useless, hang up, and come again later.
        "close_redundant_connections": False,
        "no_atime_storage": True,
        # Else what one way carries is charged to the other as acknowledgements: a node that fetches
        # fast and may send little could not ask for pieces. agent/traffic.py counts headers itself.
        "rate_limit_ip_overhead": False,
        "user_agent": "distrib",
        "peer_fingerprint": "-DI0100-",
        "tick_interval": 100,
        # There is no tracker to say goodbye to: closing a session must not wait for one.
        "stop_tracker_timeout": 0,
    }


def _socket_buffers(link: Link) -> dict[str, str | int | bool]:
    """The kernel lets a socket's buffer grow to megabytes, in which a slow link's HAVE and REQUEST
    wait behind payload; on a fast one it does well by itself (0)."""
    if link.in_flight_bytes > MIB:
        return {"send_socket_buffer_size": 0, "recv_socket_buffer_size": 0}
    send = max(link.in_flight_bytes, 64 * KIB)
    return {"send_socket_buffer_size": send, "recv_socket_buffer_size": 2 * send}
