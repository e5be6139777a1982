"""Inputs made from good ones: the same seed and number always give the same input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

MAX_BYTES = 256 * 1024

#: What formats here trip over: delimiters, numbers at limits, names, bytes of DER and UTF-8.
TOKENS: tuple[bytes, ...] = (
    b"\n", b"\r\n", b"\r", b"\n\n", b"\x00", b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xef\xbb\xbf",
    b"--", b"--part", b"boundary=", b"Content-Type: ", b"multipart/signed", b"base64", b";", b":",
    b'"', b"'", b"\\", b"\\u0000", b"\\ud800", b"{", b"}", b"[", b"]", b",", b"null", b"true",
    b"-1", b"0", b"1e999", b"NaN", b"9" * 20, b"9" * 400, b"1.10", b"/", b"*", b"?", b".*",
    b"2026-03-01T12:00:00Z", b"2499-12-31T22:00:00Z", b"0000-00-00T00:00:00Z",
    b"hv:imagelist", b"hv:image", b"hv:dn", b"dc:identifier", b"hv:version", b"distrib:profile",
    b"/CN=", b"/O=Experiment/CN=Jane Endorser", b"emailAddress=", b"+", b"=",
    b"<", b">", b"</", b"/>", b"<!--", b"-->", b"<![CDATA[", b"]]>", b"&amp;", b"&x;", b"<?x?>",
    b"<!DOCTYPE a>", b'xmlns=""', b'xmlns:ds="http://www.w3.org/2000/09/xmldsig#"', b'xml:base="x"',
    b"<Signature>", b"</rdf:Description>", b"slreq:checksum",
    b"\x30\x80", b"\x30\x84\x7f\xff\xff\xff", b"\x31\x00", b"\x02\x01\x00", b"\x05\x00",
    b"\xa0\x82", b"TO Issuer SELF PERMIT Subject", b"DENY", b"access_id_CA", b"cond_subjects", b"#",
    b"d4:info", b"i-1e", b"i0e", b"0:", b"e", b"l", b"9999999999:", b"-----BEGIN X509 CRL-----",
)  # fmt: skip


def mutate(random: Random, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds, changed in one to six places."""
    data = bytearray(random.choice(seeds))
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        random.choice(_CHANGES)(random, data, seeds)
    return bytes(data[:MAX_BYTES])


def _span(random: Random, data: bytes | bytearray) -> slice:
    start = random.randrange(len(data) + 1)
    length = min(random.choice((1, 1, 2, 4, 8, 64, 1024)), len(data) - start)
    return slice(start, start + length)


def _flip_bit(random: Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _set_byte(random: Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] = random.randrange(256)


def _delete(random: Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    del data[_span(random, data)]


def _repeat(random: Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    span = _span(random, data)
    data[span.stop : span.stop] = bytes(data[span]) * random.choice((1, 1, 2, 16, 200))


def _move(random: Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    span = _span(random, data)
    piece = bytes(data[span])
    del data[span]
    at = random.randrange(len(data) + 1)
    data[at:at] = piece


def _truncate(random: Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    del data[random.randrange(len(data) + 1) :]


def _insert_token(random: Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    at = random.randrange(len(data) + 1)
    data[at:at] = random.choice(TOKENS)


def _overwrite_token(random: Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    token = random.choice(TOKENS)
    at = random.randrange(len(data) + 1)
    data[at : at + len(token)] = token


def _splice(random: Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    other = random.choice(seeds)
    data[_span(random, data)] = other[_span(random, other)]


def _repeat_line(random: Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    lines = bytes(data).splitlines(keepends=True)
    if lines:
        number = random.randrange(len(lines))
        lines.insert(random.randrange(len(lines)), lines[number])
        data[:] = b"".join(lines)


_CHANGES: tuple[Callable[[Random, bytearray, Sequence[bytes]], None], ...] = (
    _flip_bit, _flip_bit, _set_byte, _delete, _repeat, _move, _truncate, _insert_token,
    _insert_token, _overwrite_token, _splice, _repeat_line,
)  # fmt: skip
