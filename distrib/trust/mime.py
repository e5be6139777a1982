"""The MIME shell of a signed list: exactly two parts, split on exact bytes.

RFC 8551 (S/MIME) and RFC 2046 as far as ``openssl smime -sign``, M2Crypto and vmcaster write them.
A strict reader of its own, because a lenient one (as for mail) would mend what it reads, and the
bytes that were signed must come out.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

PKCS7_TYPES = frozenset({"application/pkcs7-signature", "application/x-pkcs7-signature"})

_MAX_HEADER_BYTES = 16 * 1024
# In base64. A signature with a chain of certificates takes some 10 KiB, with CRLs maybe hundreds.
_MAX_SIGNATURE_BYTES = 1024 * 1024
_HEADERS_END = re.compile(rb"\r?\n\r?\n")
_HEADER = re.compile(r"([A-Za-z0-9-]+)[ \t]*:[ \t]*(.*)", re.DOTALL)
_PARAMETER = re.compile(r';\s*([A-Za-z0-9-]+)\s*=\s*(?:"([^"\\]*)"|([^\s;"]+))\s*')
_BOUNDARY = re.compile(r"[A-Za-z0-9'()+_,./:=? -]{0,69}[A-Za-z0-9'()+_,./:=?-]")


class MimeInvalid(ValueError):
    """The message is not the one shape of signed message that is read here."""


@dataclass(frozen=True, slots=True)
class SplitMessage:
    """``content``: the first part's exact bytes, with its headers; ``signature``: DER or BER."""

    content: bytes
    signature: bytes


def split_signed(message: bytes) -> SplitMessage:
    """The two parts of a ``multipart/signed`` message; ``MimeInvalid`` if it is anything else."""
    headers, body = _headers(message)
    kind, parameters = _content_type(headers)
    if kind != "multipart/signed":
        raise MimeInvalid(f"the message is {kind!r}, not multipart/signed")
    if parameters.get("protocol", "").lower() not in PKCS7_TYPES:
        raise MimeInvalid("the message's protocol is not a PKCS#7 signature")
    boundary = parameters.get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise MimeInvalid("the message has no usable boundary")
    content, signature_part = _two_parts(body, boundary.encode("ascii"))
    return SplitMessage(content=content, signature=_signature(signature_part))


def join_signed(content: bytes, signature: bytes, *, boundary: str, micalg: str) -> bytes:
    """A signed message as OpenSSL writes it; ``content`` is put in as it is."""
    encoded = base64.encodebytes(signature).decode("ascii")
    head = (
        "MIME-Version: 1.0\n"
        'Content-Type: multipart/signed; protocol="application/pkcs7-signature"; '
        f'micalg="{micalg}"; boundary="{boundary}"\n\n'
        "This is an S/MIME signed message\n\n"
        f"--{boundary}\n"
    )
    tail = (
        f"\n--{boundary}\n"
        'Content-Type: application/pkcs7-signature; name="smime.p7s"\n'
        "Content-Transfer-Encoding: base64\n"
        'Content-Disposition: attachment; filename="smime.p7s"\n\n'
        f"{encoded}\n"
        f"--{boundary}--\n"
    )
    return head.encode("ascii") + content + tail.encode("ascii")


def crlf(content: bytes) -> bytes:
    """MIME's canonical form of text: every line ends with CR LF."""
    return re.sub(rb"\r?\n", b"\r\n", content)


def check_document(content: bytes) -> None:
    """``MimeInvalid`` where the first part's own headers ask for more than to be left out.

    A reader that decodes the part would read another list than one that does not.
    """
    if content[:8].lower() != b"content-":
        return
    headers, _ = _headers(content)
    encoding = headers.get("content-transfer-encoding", "7bit").lower()
    if encoding not in {"7bit", "8bit", "binary"}:
        raise MimeInvalid(f"the content is in {encoding[:40]!r}; it must not be encoded")
    kind, _ = _content_type(headers)
    if kind.startswith(("multipart/", "message/")):
        raise MimeInvalid(f"the content is {kind[:40]!r}, not a list")


def document_of(content: bytes) -> bytes:
    """The document in a first part: what follows the part's own headers, where it has any.

    ``openssl smime -sign -text`` puts ``Content-Type: text/plain`` there, under the signature; most
    lists have none.
    """
    if content[:8].lower() != b"content-":
        return content
    end = _HEADERS_END.search(content, 0, _MAX_HEADER_BYTES)
    return content[end.end() :] if end else content


def _headers(part: bytes) -> tuple[dict[str, str], bytes]:
    """The header fields, names in lowercase, and what follows them."""
    end = _HEADERS_END.search(part, 0, _MAX_HEADER_BYTES)
    if end is None:
        raise MimeInvalid("no MIME headers")
    try:
        text = part[: end.start()].decode("ascii").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise MimeInvalid("headers that are not ASCII") from None
    fields: dict[str, str] = {}
    for line in re.sub(r"\n[ \t]+", " ", text.lstrip("\n")).split("\n"):
        match = _HEADER.fullmatch(line)
        if match is None:
            raise MimeInvalid(f"{line[:60]!r} is no MIME header")
        name = match[1].lower()
        if name in fields and name.startswith("content-"):
            raise MimeInvalid(f"the header {name} occurs twice")
        fields[name] = match[2].strip()
    return fields, part[end.end() :]


def _content_type(headers: dict[str, str]) -> tuple[str, dict[str, str]]:
    value = headers.get("content-type", "")
    kind, semicolon, rest = value.partition(";")
    rest = semicolon + rest
    parameters: dict[str, str] = {}
    position = 0
    while position < len(rest.rstrip(" ;")):
        match = _PARAMETER.match(rest, position)
        if match is None or match[1].lower() in parameters:
            raise MimeInvalid("a Content-Type whose parameters cannot be read")
        parameters[match[1].lower()] = match[2] if match[2] is not None else match[3]
        position = match.end()
    return kind.strip().lower(), parameters


def _two_parts(body: bytes, boundary: bytes) -> tuple[bytes, bytes]:
    delimiter = re.compile(rb"^--" + re.escape(boundary) + rb"(--)?[ \t]*\r?$", re.MULTILINE)
    found = []
    for match in delimiter.finditer(body):
        found.append(match)
        if len(found) > 3:
            break
    if [match[1] is not None for match in found] != [False, False, True]:
        raise MimeInvalid("the message has not exactly two parts")
    first, second, last = found
    return _between(body, first.end(), second.start()), _between(body, second.end(), last.start())


def _between(body: bytes, start: int, end: int) -> bytes:
    """The bytes between two delimiter lines; the line break before the second belongs to it."""
    part = body[start + 1 : end]
    if part.endswith(b"\r\n"):
        return part[:-2]
    return part.removesuffix(b"\n")


def _signature(part: bytes) -> bytes:
    headers, body = _headers(part)
    kind, _ = _content_type(headers)
    if kind not in PKCS7_TYPES:
        raise MimeInvalid(f"the second part is {kind!r}, not a PKCS#7 signature")
    if headers.get("content-transfer-encoding", "").lower() != "base64":
        raise MimeInvalid("the signature is not in base64")
    if len(body) > _MAX_SIGNATURE_BYTES:
        raise MimeInvalid(f"a signature of more than {_MAX_SIGNATURE_BYTES} bytes")
    try:
        return base64.b64decode(re.sub(rb"[ \t\r\n]", b"", body), validate=True)
    except binascii.Error:
        raise MimeInvalid("the signature is not in base64") from None
