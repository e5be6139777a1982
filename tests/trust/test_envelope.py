"""The envelope around orders, and what a hostile broker may try with it."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from distrib.errors import ExitStatus
from distrib.trust.envelope import EnvelopeRefused, key_id, open_envelope, seal
from distrib.trust.sitelist import ControllerKey

KEY = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)
KEYS = {key_id(KEY.public_key()): KEY.public_key()}
PAYLOAD = '{"node": "wn001", "generation": 1772366400}'


def refused(data: bytes, *, kind: str = "desired", keys: Any = None) -> str:
    with pytest.raises(EnvelopeRefused) as error:
        open_envelope(data, kind=kind, keys=KEYS if keys is None else keys)
    assert error.value.exit_status is ExitStatus.TRUST_REFUSED
    return error.value.reason.code.value


def edited(**fields: object) -> bytes:
    envelope = json.loads(seal("desired", PAYLOAD, KEY))
    return json.dumps(envelope | fields).encode()


def test_what_is_sealed_is_opened() -> None:
    assert open_envelope(seal("desired", PAYLOAD, KEY), kind="desired", keys=KEYS) == PAYLOAD


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_payload_comes_out_as_it_went_in(payload: str) -> None:
    assert open_envelope(seal("orders", payload, KEY), kind="orders", keys=KEYS) == payload


def test_the_key_id_of_the_format_page() -> None:
    raw = base64.b64decode("11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=")
    public_key = Ed25519PublicKey.from_public_bytes(raw)
    assert key_id(public_key) == ControllerKey.of(public_key).identifier == "21fe31dfa154a261"


def test_a_key_that_is_not_in_the_site_list() -> None:
    assert refused(seal("desired", PAYLOAD, OTHER)) == "envelope-key-unknown"
    assert refused(seal("desired", PAYLOAD, KEY), keys={}) == "envelope-key-unknown"


def test_another_key_under_a_known_id() -> None:
    forged = json.loads(seal("desired", PAYLOAD, OTHER)) | {"key": key_id(KEY.public_key())}
    assert refused(json.dumps(forged).encode()) == "envelope-signature"


def test_another_payload_under_a_good_signature() -> None:
    assert refused(edited(payload=PAYLOAD.replace("wn001", "wn002"))) == "envelope-signature"


def test_one_kind_never_serves_as_another() -> None:
    assert refused(seal("orders", PAYLOAD, KEY)) == "envelope-kind"
    relabelled = json.loads(seal("orders", PAYLOAD, KEY)) | {"kind": "desired"}
    assert refused(json.dumps(relabelled).encode()) == "envelope-signature"


@pytest.mark.parametrize("signature", ["", "AAAA", "not base64!", base64.b64encode(b"\0" * 64).decode()])  # noqa: E501  # fmt: skip
def test_bad_signatures(signature: str) -> None:
    assert refused(edited(signature=signature)) == "envelope-signature"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        edited(v=2),
        edited(v="1"),
        edited(v=True),
        edited(payload={"node": "wn001"}),
        edited(key=7),
        edited(kind=None),
        b'{"v": 1, "kind": "orders", "kind": "desired"}',
        b"[" * 1000,
        seal("desired", PAYLOAD, KEY)[:-1],
        b" " * (1024 * 1024 + 1),
    ],
    ids=lambda data: repr(data[:30]),
)
def test_what_is_no_envelope(data: bytes) -> None:
    assert refused(data) == "message-invalid"


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_never_changes_what_is_accepted(at: int, bit: int) -> None:
    data = bytearray(seal("desired", PAYLOAD, KEY))
    data[at % len(data)] ^= 1 << bit
    with contextlib.suppress(EnvelopeRefused):
        assert open_envelope(bytes(data), kind="desired", keys=KEYS) == PAYLOAD


def test_only_words_are_kinds_and_size_is_bounded() -> None:
    with pytest.raises(ValueError, match="kind"):
        seal("desired\norders", PAYLOAD, KEY)
    with pytest.raises(ValueError, match="bytes"):
        seal("desired", "x" * 1024 * 1024, KEY)
