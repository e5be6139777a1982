"""Frames: what one side writes the other reads; what neither writes is refused in one line."""

from __future__ import annotations

import contextlib
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distrib.errors import MessageInvalid, OperatorError
from distrib.tsunami import protocol
from distrib.tsunami.hosts import PlainHost, parse_hosts
from distrib.tsunami.protocol import Frames

u32 = st.integers(0, 2**32 - 1)
count = st.integers(1, 2**32 - 1)
requests = st.one_of(
    st.builds(protocol.Hello, st.integers(1, 65535)),
    st.builds(protocol.Open, st.binary(min_size=32, max_size=32).map(bytes.hex)),
    st.builds(protocol.Get, u32, count),
    st.builds(protocol.Drop, u32, count),
    st.builds(protocol.AskHashes, u32, count),
    st.builds(protocol.Subscribe, st.binary(max_size=100)),
)
replies = st.one_of(
    st.builds(protocol.Welcome, st.integers(0, 65535)),
    st.builds(protocol.Piece, u32, st.binary(min_size=1, max_size=100)),
    st.builds(protocol.Absent, u32, count),
    st.builds(protocol.Have, u32, count),
    st.just(protocol.Idle()),
    st.builds(protocol.Failed, st.sampled_from(["revoked", "not-found"]), st.text(max_size=50)),
    st.builds(protocol.Hashes, u32, st.binary(min_size=1, max_size=3).map(lambda b: b * 32)),
    st.just(protocol.Opened(100, 16, b"\xfe")),
)


@given(st.lists(requests), st.lists(replies), st.integers(1, 50))
def test_what_is_written_is_read(
    asked: list[protocol.Request], said: list[protocol.Reply], step: int
) -> None:
    for messages, read in ((asked, protocol.request), (said, protocol.reply)):
        raw = b"".join(map(protocol.encode, messages))  # type: ignore[arg-type]
        frames = Frames(max_bytes=protocol.REPLY_MAX_BYTES)
        found = [
            read(kind, body)
            for at in range(0, len(raw), step)
            for kind, body in frames.feed(raw[at : at + step])
        ]
        assert found == messages
        assert frames.is_between


@given(st.lists(st.binary(max_size=60)))
def test_any_bytes_are_frames_or_refused(chunks: list[bytes]) -> None:
    frames = Frames(max_bytes=protocol.REQUEST_MAX_BYTES)
    for read in (protocol.request, protocol.reply):
        try:
            for chunk in chunks:
                for kind, body in frames.feed(chunk):
                    read(kind, body)
        except MessageInvalid as error:
            assert "\n" not in error.message


@given(st.integers(0, 255), st.binary(max_size=200))
def test_any_frame_is_a_message_or_refused(kind: int, body: bytes) -> None:
    for read, kinds in ((protocol.request, protocol.Request), (protocol.reply, protocol.Reply)):
        with contextlib.suppress(MessageInvalid):
            assert isinstance(read(kind, body), get_args(kinds))


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_bit_maps_have_one_bit_a_piece(held: list[bool]) -> None:
    raw = protocol.bitmap(held)
    assert list(map(bool, protocol.flags(raw, len(held)))) == held
    indices = [index for index, one in enumerate(held) if one]
    assert [i for first, n in protocol.ranges(indices) for i in range(first, first + n)] == indices
    if len(held) % 8:
        spare = bytes([*raw[:-1], raw[-1] | 1])
        with pytest.raises(MessageInvalid, match="past the end"):
            protocol.flags(spare, len(held))


def test_a_file_of_hosts_is_read() -> None:
    text = "# farm\nwn001\nalice@wn002:2222 rack=r1\n\n[2001:db8::1]:22 # v6\n"
    assert parse_hosts(text, user="root", where="x") == (
        PlainHost("wn001", "root"),
        PlainHost("wn002", "alice", 2222, "r1"),
        PlainHost("2001:db8::1", "root"),
    )


@pytest.mark.parametrize(
    "line",
    [
        "-oProxyCommand=id",
        "wn001 rack",
        "wn001:99999",
        "a b",
        "wn;id",
        "x@-y",
        "wn001 size=3",
        "$(id)",
    ],
)
def test_what_is_no_host_is_named_by_its_line(line: str) -> None:
    with pytest.raises(OperatorError, match="hosts, line 2"):
        parse_hosts(f"wn001\n{line}\n", user="root", where="hosts")
    with pytest.raises(OperatorError, match="a second time"):
        parse_hosts("wn001\nwn001\n", user="root", where="hosts")
