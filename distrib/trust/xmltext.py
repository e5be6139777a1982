"""XML from strangers: bounded before it is parsed, without a DTD, entities or any look elsewhere.

UTF-8 only, so that what is looked for in the bytes is what the parser sees. Bounds are far above
what the Marketplace held (its entries have 2 to 12 KiB) and low enough that canonicalisation, whose
time grows with elements x namespaces, stays quick.
"""

from __future__ import annotations

import re
from typing import Any

from lxml import etree

from distrib.trust.reasons import Reason, ReasonCode

MAX_XML_BYTES = 256 * 1024
_MAX_ELEMENTS = 4096
_MAX_DEPTH = 32
_MAX_NAMESPACES = 128
_MAX_EQUALS = 4096

#: An lxml element (lxml has no types of its own).
Element = Any

_DECLARATION = re.compile(rb"<\?xml\s[^>]*?encoding\s*=\s*[\"']([A-Za-z0-9._-]*)[\"']")


class XmlRefused(ValueError):
    """The bytes are not XML that is read here; ``reason`` says why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(str(reason))
        self.reason = reason


def load_xml(content: bytes) -> Element:
    """The root element; ``XmlRefused`` if it is too large, too deep, has a DTD, or is no XML."""
    if len(content) > MAX_XML_BYTES:
        text = f"{len(content)} bytes of XML, at most {MAX_XML_BYTES} are read"
        raise XmlRefused(Reason(ReasonCode.TOO_LARGE, text))
    _check_bytes(content)
    try:
        root = etree.fromstring(content, parser=_parser())
    except (etree.XMLSyntaxError, ValueError) as error:
        raise _malformed(f"not XML: {error}"[:300]) from None
    _check_tree(root)
    return root


def canonical(root: Element) -> bytes:
    """The element without comments, in canonical form; ``XmlRefused`` where it has none.

    Canonical XML is not defined where a namespace is a relative URI.
    """
    try:
        written: bytes = etree.tostring(root, method="c14n", with_comments=False)
    except etree.LxmlError as error:
        raise _malformed(f"XML without a canonical form: {error}"[:300]) from None
    return written


def looks_like_xml(content: bytes) -> bool:
    """Whether this is meant as XML: it begins with ``<``."""
    return content[:1024].removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<"


def _parser() -> Any:
    """A parser of its own for every document: they keep names and state of what they parsed."""
    return etree.XMLParser(
        resolve_entities=False,
        load_dtd=False,
        dtd_validation=False,
        attribute_defaults=False,
        no_network=True,
        huge_tree=False,
        recover=False,
    )


def _check_bytes(content: bytes) -> None:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        raise _malformed("not UTF-8") from None
    declared = _DECLARATION.match(content.removeprefix(b"\xef\xbb\xbf"))
    if declared is not None and declared[1].lower() not in {b"utf-8", b"us-ascii"}:
        raise _malformed("not UTF-8, by its declaration")
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise _malformed("XML with a DTD; entries have none")
    if content.count(b"xmlns") > _MAX_NAMESPACES:
        raise _malformed(f"XML with more than {_MAX_NAMESPACES} namespace declarations")
    if content.count(b"=") > _MAX_EQUALS:
        raise _malformed(f"XML with more than {_MAX_EQUALS} attributes")
    if content.count(b"<") > 3 * _MAX_ELEMENTS:
        raise _malformed(f"XML of more than {_MAX_ELEMENTS} elements")


def _check_tree(root: Element) -> None:
    if root.getroottree().docinfo.internalDTD is not None:
        raise _malformed("XML with a DTD; entries have none")
    depth = elements = 0
    for event, node in etree.iterwalk(root, events=("start", "end", "pi")):
        if event == "pi":
            raise _malformed("XML with processing instructions in it")
        if event == "end":
            depth -= 1
            continue
        depth += 1
        elements += 1
        if depth > _MAX_DEPTH or elements > _MAX_ELEMENTS:
            raise _malformed(f"XML nested deeper than {_MAX_DEPTH}, or too long")
        if not isinstance(node.tag, str):
            raise _malformed("XML with entities")


def _malformed(text: str) -> XmlRefused:
    return XmlRefused(Reason(ReasonCode.MESSAGE_MALFORMED, f"the content is {text}"))
