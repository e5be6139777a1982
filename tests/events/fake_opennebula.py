"""FakeOpenNebula: the image calls of OpenNebula's XML-RPC for one account; no cloud.

Signatures, states and what each state allows are those of OpenNebula's reference and of its
ImageManager: names are unique, nothing in use is deleted or disabled, a copy takes a while.
"""

from __future__ import annotations

import xmlrpc.client
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

from tests.events.cloud_server import Answer

SESSION = "oneadmin:onepass"
READY, USED, DISABLED, LOCKED, ERROR = 1, 2, 3, 4, 5
MEANT = {
    "one.imagepool.info": [str, int, int, int],
    "one.image.info": [str, int],
    "one.image.allocate": [str, str, int],
    "one.image.rename": [str, int, str],
    "one.image.chmod": [str, int, *[int] * 9],
    "one.image.enable": [str, int, bool],
    "one.image.delete": [str, int],
}


class Refused(Exception):
    """An error code of OpenNebula's and its text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass
class Stored:
    """An image. ``copying``: how often it is asked for until its copy is there."""

    id: int
    name: str
    template: dict[str, str]
    state: int = LOCKED
    mode: str = "644"
    copying: int = 1
    size_bytes: int = 0


@dataclass
class FakeOpenNebula:
    """``failing``: method to ``code`` (refused) or 0 (done, and no answer)."""

    images: dict[int, Stored] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    failing: dict[str, int] = field(default_factory=dict)
    copying: int = 0
    newest: int = 6

    def answer(
        self, method: str, path: str, headers: Mapping[str, str], body: IO[bytes]
    ) -> Answer | None:
        assert (method, path, headers["content-type"]) == ("POST", "/RPC2", "text/xml")
        given, name = xmlrpc.client.loads(body.read(int(headers["content-length"])).decode())
        assert name is not None
        self.calls.append(name)
        failing = self.failing.pop(name, None)
        answered: tuple[bool, Any, int]
        try:
            answered = (True, self._done(name, given, failing), 0)
        except Refused as refused:
            answered = (False, str(refused), refused.code)
        if failing == 0:
            return None
        text = xmlrpc.client.dumps((list(answered),), methodresponse=True)
        return 200, text.encode(), {"Content-Type": "text/xml"}

    def _done(self, name: str, given: tuple[Any, ...], failing: int | None) -> int | str:
        if [type(one) for one in given] != MEANT[name]:
            raise Refused(0x1000, f"{name}: parameters {given}")
        if given[0] != SESSION:
            raise Refused(0x0100, f"[{name}] User couldn't be authenticated, aborting call.")
        if failing:
            raise Refused(failing, f"[{name}] Cannot\n do it")
        verb = "pool" if name == "one.imagepool.info" else name.rpartition(".")[2]
        does: Callable[..., int | str] = getattr(self, f"_{verb}")
        return does(*given[1:])

    def shown(self) -> list[Stored]:
        return list(self.images.values())

    def _pool(self, flag: int, first: int, last: int) -> str:
        assert (flag, first, last) == (-3, -1, -1)
        pool = ElementTree.Element("IMAGE_POOL")
        pool.extend(element_of(image) for image in self.images.values())
        return ElementTree.tostring(pool, encoding="unicode")

    def _info(self, image: int) -> str:
        stored = self._stored(image)
        if stored.state == LOCKED:
            stored.copying -= 1
            if stored.copying < 0:
                file = Path(stored.template["PATH"])
                stored.state = READY if file.exists() else ERROR
                if stored.state == READY:
                    stored.size_bytes = file.stat().st_size
                else:
                    stored.template["ERROR"] = f"Error copying image: not allowed to copy {file}"
        return ElementTree.tostring(element_of(stored), encoding="unicode")

    def _allocate(self, template: str, datastore: int) -> int:
        element = ElementTree.fromstring(template)  # noqa: S314 - of the handler under test
        given = {one.tag: one.text or "" for one in element}
        if element.tag != "TEMPLATE" or datastore != 104:
            raise Refused(0x0400, "error getting datastore")
        if given["TYPE"] != "OS" or given["FORMAT"] not in {"raw", "qcow2"}:
            raise Refused(0x2000, "error parsing the template")
        self._name_is_free(given["NAME"])
        self.newest += 1
        name = given.pop("NAME")
        self.images[self.newest] = Stored(self.newest, name, given, copying=self.copying)
        return self.newest

    def _rename(self, image: int, name: str) -> int:
        self._name_is_free(name)
        self._stored(image).name = name
        return image

    def _chmod(self, image: int, *bits: int) -> int:
        assert set(bits) <= {-1, 0, 1}
        digits = [bits[first : first + 3] for first in (0, 3, 6)]
        self._stored(image).mode = "".join(str(4 * u + 2 * m + a) for u, m, a in digits)
        return image

    def _enable(self, image: int, enabled: bool) -> int:
        stored = self._stored(image)
        if stored.state not in {READY, DISABLED, ERROR}:
            raise Refused(0x2000, "Image cannot be in state USED.")
        stored.state = READY if enabled else DISABLED
        return image

    def _delete(self, image: int) -> int:
        if self._stored(image).state == USED:
            raise Refused(0x2000, "There are 1 VMs using it.")
        del self.images[image]
        return image

    def _stored(self, image: int) -> Stored:
        if image not in self.images:
            raise Refused(0x0400, f"Error getting image [{image}].")
        return self.images[image]

    def _name_is_free(self, name: str) -> None:
        if name in {image.name for image in self.images.values()} or len(name) > 128:
            raise Refused(0x4000, f"NAME is already taken by IMAGE {name}.")


def element_of(image: Stored) -> ElementTree.Element:
    element = ElementTree.Element("IMAGE")
    parts: dict[str, Any] = {"ID": image.id, "NAME": image.name, "STATE": image.state}
    for name, value in parts.items():
        ElementTree.SubElement(element, name).text = str(value)
    template = ElementTree.SubElement(element, "TEMPLATE")
    for name, value in image.template.items():
        ElementTree.SubElement(template, name).text = value
    return element
