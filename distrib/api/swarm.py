"""Swarms: who fetches an image from whom, who does not move and why; torrents for other clients."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from fastapi import APIRouter

from distrib.api.access import Use, Viewer
from distrib.api.services import Services
from distrib.db.models import Image
from distrib.db.references import USABLE, aliases_of, image_name, resolve
from distrib.errors import NotFound
from distrib.swarm import TORRENT_FILE

router = APIRouter(tags=["swarm"])


@router.get("/swarm/{ref:path}/torrent")
async def torrent(ref: str, services: Use, _actor: Viewer) -> dict[str, Any]:
    """The torrent with its piece layers, base64, and where the seeders are."""
    image, about = await asyncio.to_thread(_image, services, ref)
    content = await asyncio.to_thread(_torrent, services, image)
    swarm = await services.rollouts.swarm_view(image.infohash or "")
    peers = [
        {"node": one["node"], "address": one["address"], "port": one["port"]}
        for one in swarm["seeders"]
        if one["online"] and one["has_image"]
    ]
    return about | {
        "infohash": image.infohash,
        "torrent": base64.b64encode(content).decode("ascii"),
        "peers": peers,
    }


@router.get("/swarm/{ref:path}")
async def show(ref: str, services: Use, _actor: Viewer) -> dict[str, Any]:
    """The swarm of an image: the relay tree as planned, and what the nodes say."""
    image, about = await asyncio.to_thread(_image, services, ref)
    return about | dict(await services.rollouts.swarm_view(image.infohash or ""))


def _image(services: Services, ref: str) -> tuple[Image, dict[str, Any]]:
    with services.database.reading() as session:
        image = resolve(session, ref, states=USABLE)
        return image, {
            "image": image_name(image),
            "aliases": aliases_of(session, image.identifier),
            "size_bytes": image.size_bytes,
            "piece_bytes": image.piece_bytes,
        }


def _torrent(services: Services, image: Image) -> bytes:
    file = services.catalogue.store.image_file(image.infohash or "").with_name(TORRENT_FILE)
    try:
        return file.read_bytes()
    except OSError as error:
        raise NotFound(
            f"image {image_name(image)}: {file}: {error.strerror}",
            hint="the head's store is damaged: approve the image again",
            image=image_name(image),
        ) from None
