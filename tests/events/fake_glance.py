"""FakeGlance: Image API v2 and Keystone v3 for one project, as their references say; no cloud.

It refuses what a Glance refuses (https://docs.openstack.org/api-ref/image/v2/): read-only or
unknown values, other media types, uploads to an image that is not queued, actions on one that is
neither active nor deactivated. Lists leave hidden images out unless asked for them alone.
"""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any
from urllib.parse import parse_qs, urlsplit

from tests.events.cloud_server import Answer

PROJECT, TOKEN, SECRET = "6c0b7e0a22", "gAAAAAB-token", "application's secret"
DISK_FORMATS = {"ami", "ari", "aki", "vhd", "vhdx", "vmdk", "raw", "qcow2", "vdi", "ploop", "iso"}
CONTAINER_FORMATS = {"ami", "ari", "aki", "bare", "ovf", "ova", "docker"}
VISIBILITIES = {"public", "community", "shared", "private"}
READ_ONLY = {
    *("status", "checksum", "os_hash_algo", "os_hash_value", "size", "virtual_size", "owner"),
    *("created_at", "updated_at", "self", "file", "schema", "direct_url", "locations", "first"),
}
WRITABLE: dict[str, Callable[[Any], bool]] = {
    "id": lambda value: str(uuid.UUID(value)) == value,
    "name": lambda value: isinstance(value, str) and len(value) <= 255,
    "visibility": VISIBILITIES.__contains__,
    "os_hidden": lambda value: isinstance(value, bool),
    "protected": lambda value: isinstance(value, bool),
    "disk_format": DISK_FORMATS.__contains__,
    "container_format": CONTAINER_FORMATS.__contains__,
    "tags": lambda value: isinstance(value, list),
    "min_disk": lambda value: isinstance(value, int),
    "min_ram": lambda value: isinstance(value, int),
}


class Refused(Exception):
    """An HTTP status and what a Glance would say."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass
class FakeGlance:
    """``failing``: method to status, or to 0: done, and no answer. ``spoils``: it changes bytes."""

    url: str = ""
    algorithm: str = "sha512"
    page: int = 25
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    failing: dict[str, int] = field(default_factory=dict)
    spoils: bool = False
    hold: threading.Event | None = None
    uploading: threading.Event = field(default_factory=threading.Event)

    def answer(
        self, method: str, path: str, headers: Mapping[str, str], body: IO[bytes]
    ) -> Answer | None:
        parts = urlsplit(path)
        self.calls.append(f"{method} {parts.path}")
        failing = self.failing.pop(method, None)
        if failing:
            return failing, b"no valid host\nwas found", {}
        try:
            if parts.path == "/v3/auth/tokens":
                answered = self._sign_in(json_of(headers, body))
            else:
                answered = self._images(method, parts.path, parts.query, headers, body)
        except Refused as refused:
            return refused.status, str(refused).encode(), {}
        return None if failing == 0 else answered

    def shown(self) -> list[dict[str, Any]]:
        return list(self.images.values())

    def _sign_in(self, body: dict[str, Any]) -> Answer:
        assert body["auth"]["identity"]["methods"] == ["application_credential"]
        if body["auth"]["identity"]["application_credential"] != {"id": "c1", "secret": SECRET}:
            raise Refused(401, "the credential is not valid")
        endpoints = [
            {"interface": "internal", "region_id": "R1", "url": "https://127.0.0.1:1"},
            {"interface": "public", "region_id": "R1", "url": f"{self.url}/v2/"},
        ]
        catalog = [
            {"type": "compute", "endpoints": []},
            {"type": "image", "endpoints": endpoints},
        ]
        token = {"token": {"project": {"id": PROJECT}, "catalog": catalog}}
        return 201, json.dumps(token).encode(), {"X-Subject-Token": TOKEN}

    def _images(
        self, method: str, path: str, query: str, headers: Mapping[str, str], body: IO[bytes]
    ) -> Answer:
        if headers.get("x-auth-token") != TOKEN:
            raise Refused(401, "authentication is required")
        match (method, *path.strip("/").split("/")):
            case ("GET", "v2", "images"):
                return told(200, self._list(parse_qs(query)))
            case ("POST", "v2", "images"):
                return told(201, self._create(json_of(headers, body)))
            case ("GET", "v2", "images", name):
                return told(200, self._image(name))
            case ("DELETE", "v2", "images", name):
                del self.images[self._image(name)["id"]]
            case ("PATCH", "v2", "images", name):
                if headers["content-type"] != "application/openstack-images-v2.1-json-patch":
                    raise Refused(415, "unsupported media type")
                for operation in json.loads(body.read(int(headers["content-length"]))):
                    self._patch(self._image(name), **operation)
                return told(200, self._image(name))
            case ("PUT", "v2", "images", name, "file"):
                self._upload(self._image(name), headers, body)
            case ("POST", "v2", "images", name, "actions", "deactivate" | "reactivate" as action):
                image = self._image(name)
                if image["status"] not in {"active", "deactivated"}:
                    raise Refused(403, f"not allowed to {action} image in status {image['status']}")
                image["status"] = "active" if action == "reactivate" else "deactivated"
            case _:
                raise Refused(404, "the resource could not be found")
        return 204, b"", {}

    def _image(self, name: str) -> dict[str, Any]:
        if name not in self.images:
            raise Refused(404, f"no image found with ID {name}")
        return self.images[name]

    def _list(self, query: dict[str, list[str]]) -> dict[str, Any]:
        asked = {name: values[0] for name, values in query.items()}
        limit = min(int(asked.pop("limit", "25")), self.page)
        marker, hidden = asked.pop("marker", None), asked.pop("os_hidden", "false") == "true"
        found = [
            image
            for image in self.images.values()
            if image["os_hidden"] == hidden
            and all(image.get(name) == value for name, value in asked.items())
        ]
        if marker is not None:
            found = found[[image["id"] for image in found].index(marker) + 1 :]
        page: dict[str, Any] = {"images": found[:limit], "first": "/v2/images"}
        if len(found) > limit:
            page["next"] = f"/v2/images?marker={found[limit - 1]['id']}"
        return page

    def _create(self, body: dict[str, Any]) -> dict[str, Any]:
        for name, value in body.items():
            check(name, value)
        image = {
            "id": str(uuid.uuid4()),
            "status": "queued",
            "visibility": "shared",
            "os_hidden": False,
            "owner": PROJECT,
            "os_hash_algo": None,
            "os_hash_value": None,
            "size": None,
            "created_at": f"2026-03-01T12:00:{len(self.images):02}Z",
            **body,
        }
        if image["id"] in self.images:
            raise Refused(409, "image ID exists")
        self.images[image["id"]] = image
        return image

    def _patch(self, image: dict[str, Any], *, op: str, path: str, value: Any) -> None:
        name = path.removeprefix("/")
        check(name, value)
        if op == "replace" and name not in image:
            raise Refused(409, f"property {name} does not exist")
        image[name] = value

    def _upload(self, image: dict[str, Any], headers: Mapping[str, str], body: IO[bytes]) -> None:
        if headers["content-type"] != "application/octet-stream":
            raise Refused(415, "unsupported media type")
        if image["status"] != "queued":
            raise Refused(409, f"image status transition from {image['status']} to saving")
        image["status"] = "saving"
        self.uploading.set()
        if self.hold is not None:
            self.hold.wait(10)
        size_bytes = int(headers["content-length"])
        try:
            content = body.read(size_bytes)
        except OSError:
            content = b""
        if len(content) != size_bytes:
            image["status"] = "queued"
            raise Refused(400, "the upload was torn off")
        digest = hashlib.new(self.algorithm, b"x" * self.spoils + content).hexdigest()
        image |= {"status": "active", "size": size_bytes}
        image |= {"os_hash_algo": self.algorithm, "os_hash_value": digest}


def check(name: str, value: Any) -> None:
    """Whether a client may give an image this."""
    if name in READ_ONLY or name.startswith("os_glance"):
        raise Refused(403, f"attribute {name!r} is read-only")
    fits = WRITABLE[name](value) if name in WRITABLE else isinstance(value, str)
    if not fits or len(name) > 255:
        raise Refused(400, f"provided object does not match schema 'image': {name}")


def json_of(headers: Mapping[str, str], body: IO[bytes]) -> dict[str, Any]:
    if headers.get("content-type") != "application/json":
        raise Refused(415, "unsupported media type")
    document: dict[str, Any] = json.loads(body.read(int(headers["content-length"])))
    return document


def told(status: int, document: Any) -> Answer:
    return status, json.dumps(document).encode(), {"Content-Type": "application/json"}
