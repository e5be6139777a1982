"""The Ed25519 envelope around orders to nodes. Format and rules: docs/formats/envelope.md.

The payload travels as a JSON *string*: what is verified is exactly what is parsed afterwards.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from distrib.errors import TrustRefused
from distrib.trust.jsontext import JsonRefused, load_json
from distrib.trust.reasons import Reason, ReasonCode

MAX_ENVELOPE_BYTES = 1024 * 1024
VERSION = 1

_KIND = re.compile(r"[a-z][a-z0-9-]{0,31}")


class EnvelopeRefused(TrustRefused):
    """An envelope that may not be acted on; ``reason.code`` says which rule it breaks."""

    def __init__(self, code: ReasonCode, message: str, **ids: str | int) -> None:
        self.reason = Reason(code, message)
        super().__init__(
            f"order refused: {self.reason}",
            reasons=(self.reason.as_dict(),),
            hint="what was in force stays; see who else may write to the broker",
            **ids,
        )


def key_id(public_key: Ed25519PublicKey) -> str:
    """The first 16 hex digits of the SHA-256 of the raw public key."""
    return hashlib.sha256(public_key.public_bytes_raw()).hexdigest()[:16]


def seal(kind: str, payload: str, key: Ed25519PrivateKey) -> bytes:
    """The signed envelope; ``ValueError`` for a kind that is no word, or more than 1 MiB."""
    signature = key.sign(_signed_bytes(kind, payload))
    envelope = {
        "v": VERSION,
        "kind": kind,
        "key": key_id(key.public_key()),
        "payload": payload,
        "signature": base64.b64encode(signature).decode("ascii"),
    }
    data = json.dumps(envelope).encode("ascii")
    if len(data) > MAX_ENVELOPE_BYTES:
        raise ValueError(f"an envelope of {len(data)} bytes, at most {MAX_ENVELOPE_BYTES} are read")
    return data


def open_envelope(data: bytes, *, kind: str, keys: Mapping[str, Ed25519PublicKey]) -> str:
    """The payload, if one of ``keys`` (by id) signed it as ``kind``; else ``EnvelopeRefused``."""
    fields = _fields(data)
    payload, stated_kind = fields["payload"], fields["kind"]
    if stated_kind != kind:
        raise EnvelopeRefused(
            ReasonCode.ENVELOPE_KIND, f"the envelope is a {stated_kind[:32]!r}, not a {kind!r}"
        )
    key = keys.get(fields["key"])
    if key is None or key_id(key) != fields["key"]:
        raise EnvelopeRefused(
            ReasonCode.ENVELOPE_KEY_UNKNOWN,
            f"the key {fields['key'][:32]!r} is not in the site list",
            key=fields["key"][:32],
        )
    try:
        signature = base64.b64decode(fields["signature"], validate=True)
        key.verify(signature, _signed_bytes(kind, payload))
    except (InvalidSignature, binascii.Error, ValueError):
        raise EnvelopeRefused(
            ReasonCode.ENVELOPE_SIGNATURE, "the signature does not verify", key=fields["key"]
        ) from None
    return payload


def _signed_bytes(kind: str, payload: str) -> bytes:
    if not _KIND.fullmatch(kind):
        raise ValueError(f"{kind!r} is no kind of envelope")
    return f"distrib-v1:{kind}\n{payload}".encode()


def _fields(data: bytes) -> dict[str, str]:
    try:
        envelope = load_json(data, max_bytes=MAX_ENVELOPE_BYTES, max_depth=4)
    except JsonRefused as error:
        raise EnvelopeRefused(ReasonCode.MESSAGE_INVALID, error.reason.message) from None
    version = envelope.get("v") if isinstance(envelope, dict) else None
    if not isinstance(envelope, dict) or isinstance(version, bool) or version != VERSION:
        raise EnvelopeRefused(ReasonCode.MESSAGE_INVALID, "not an envelope of version 1")
    fields = {}
    for name in ("kind", "key", "payload", "signature"):
        value = envelope.get(name)
        if not isinstance(value, str):
            raise EnvelopeRefused(ReasonCode.MESSAGE_INVALID, f"{name} is missing or no text")
        fields[name] = value
    return fields
