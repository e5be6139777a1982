"""The map of the farm that was accepted last, and the floor below which none is accepted again."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from agent.cache import durable
from agent.refusals import GenerationDown, check_not_ahead
from agent.traffic_zones import check_networks
from distrib.bus.messages import FarmMap
from distrib.bus.schema import decode
from distrib.trust.envelope import open_envelope

log = structlog.get_logger(__name__)


class KnownFarm:
    """``farm.json`` in the state directory: the envelope, raw, and its generation.

    ``map`` is in force; ``waiting`` is an envelope that could not be checked yet.
    """

    def __init__(self, state_dir: Path) -> None:
        self.map: FarmMap | None = None
        self.generation = 0
        self.waiting: bytes | None = None
        self._accepted = b""
        self._path = state_dir / "farm.json"

    def load(self) -> None:
        """Read what was accepted before; ``take_up`` checks it again."""
        try:
            document = json.loads(self._path.read_bytes())
            self.generation = int(document["generation"])
            self.waiting = base64.b64decode(document["envelope"], validate=True) or None
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("state-corrupt", path=str(self._path), why=str(error))

    def take_up(self, keys: Mapping[str, Ed25519PublicKey], now: datetime) -> FarmMap:
        """Accept what waits. Raises TrustRefused or MessageInvalid; then what was in force stays,
        and it goes on waiting: the list that names its key may be next."""
        envelope = self.waiting or b""
        payload = open_envelope(envelope, kind="farm", keys=keys)
        farm = decode(FarmMap, payload.encode(), what="farm")
        if farm.generation < self.generation:
            raise GenerationDown(
                f"map of the farm {farm.generation}, have {self.generation}",
                hint="an old message was replayed, or the head was set back",
            )
        check_not_ahead("map of the farm", farm.generation, now)
        check_networks(farm)
        self.waiting, self._accepted = None, envelope
        self._save(farm.generation, envelope)
        self.map, self.generation = farm, farm.generation
        return farm

    def distrust(self) -> None:
        """Whoever signed the list that named its key is revoked: nobody has a place by it until the
        next list names the key as well. The broker would not say it again."""
        self.map, self.generation, self.waiting = None, 0, self._accepted or self.waiting
        self._save(0, self.waiting or b"")

    def _save(self, generation: int, envelope: bytes) -> None:
        kept = base64.b64encode(envelope).decode("ascii")
        document = {"v": 1, "generation": generation, "envelope": kept}
        durable.replace(self._path, json.dumps(document).encode())
