"""What the site says, as far as it proves it: site list, CRL, farm, desired state and orders.

Everything that arrives is checked before it replaces what is in force, is on disk before it is
acted on, and is checked again at every start. What is refused changes nothing and is counted by
its code. A list that only time speaks against stays in force for what runs; it gives no new leases.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from agent.aliases import KnownAliases
from agent.cache import durable
from agent.known_farm import KnownFarm
from agent.refusals import GenerationDown, OrdersExpired, WrongNode, check_not_ahead
from distrib.bus.messages import Desired, FarmMap, Orders
from distrib.bus.schema import decode
from distrib.errors import DistribError, MessageInvalid, NotReady, SiteListStale, TrustRefused
from distrib.trust.chain import TrustMaterial
from distrib.trust.envelope import open_envelope
from distrib.trust.revocation import read_whole
from distrib.trust.sitelist import SiteImage, SiteList, SiteVerdict, is_stale, verify_site_list

log = structlog.get_logger(__name__)

SITE_LIST_MAX_BYTES = 16 << 20
CRL_MAX_BYTES = 4 << 20
ORDERS_GRACE_S = 30


class Authority:
    """The accepted documents of the site on one node.

    Invariants: ``site_list`` was signed by a certificate of the catalogue's role under the site's
    CA; its version, the generation of ``desired`` and the sequence of orders never go down, also
    over restarts.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        node: str,
        trust: TrustMaterial,
        max_age_s: float,
        clock_skew_s: int,
        clock: Callable[[], datetime],
    ) -> None:
        self.site_list: SiteList | None = None
        self.desired: Desired | None = None
        self.refused: Counter[str] = Counter()
        self.aliases = KnownAliases(state_dir)
        self.farm = KnownFarm(state_dir)
        self._state_dir = state_dir
        self._node = node
        self._trust = trust
        self._max_age_s = max_age_s
        self._skew_s = clock_skew_s
        self._clock = clock
        self._list_sha512: str | None = None
        self._authentic = False
        self._waiting_list: bytes | None = None
        self._waiting_desired: bytes | None = None
        self._generation = 0
        self._sequence = 0
        durable.make_directory(state_dir)

    # -- start ----------------------------------------------------------------------------------

    def load(self) -> None:
        """Take up what was accepted before; what does not hold any more is left aside."""
        durable.sweep(self._state_dir)
        self._load_floors()
        self.aliases.load()
        crl = _read(self._state_dir / "crl.pem")
        if crl is not None:
            self._guarded("crl", lambda: self._take_crl(crl))
        message = _read(self._state_dir / "site-list.smime")
        if message is not None:
            verdict = self._verify(message)
            if verdict.authentic:
                self._enforce(verdict)
            else:
                self._count("site-list", [reason.code for reason in verdict.reasons])
        self.farm.load()
        if self.site_list is not None:
            self._guarded("farm", lambda: self.farm.take_up(self._keys(), self._clock()))
        envelope = _read(self._state_dir / "desired.json")
        if envelope is not None and self.site_list is not None:
            self._guarded("desired", lambda: self._take_desired(envelope, self._generation))

    def _load_floors(self) -> None:
        raw = _read(self._state_dir / "agent.json")
        if raw is None:
            return
        try:
            document = json.loads(raw)
            self._generation = int(document["generation"])
            self._sequence = int(document["orders_sequence"])
        except (ValueError, KeyError, TypeError) as error:
            log.warning("state-corrupt", path=str(self._state_dir / "agent.json"), why=str(error))

    # -- what is in force -----------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """Of the newest desired state that was accepted."""
        return self._generation

    @property
    def list_age_s(self) -> float | None:
        """Age of the site list in seconds, None without one."""
        if self.site_list is None:
            return None
        return (self._clock() - self.site_list.created).total_seconds()

    def image(self, infohash: str) -> SiteImage | None:
        """An entry of the site list with this torrent, whichever image it is of."""
        if self.site_list is None:
            return None
        return next((i for i in self.site_list.images if i.infohash == infohash), None)

    def entry(self, identifier: str, version: str, infohash: str) -> SiteImage | None:
        """The site list's entry for an image version, or None: then it may not be used here.

        The info-hash alone does not do: the same bytes may stand under another name."""
        image = self.image(infohash)
        named = image is not None and (image.identifier, image.version) == (identifier, version)
        return image if named else None

    def require_leasable(self) -> SiteList:
        """The site list, if new leases may rest on it. Raises SiteListStale or NotReady."""
        if self.site_list is None:
            raise NotReady("no site list yet", hint="is the broker reachable?")
        now = self._clock()
        stale = is_stale(self.site_list.created, now=now, max_age_s=self._max_age_s)
        expired = now > self.site_list.expires + timedelta(seconds=self._skew_s)
        if stale or expired or not self._authentic:
            why = "expired" if expired else "too old" if stale else "no longer authentic"
            raise SiteListStale(
                f"the site list {self.site_list.version} is {why}: no new leases",
                hint="the controller, the broker or this node's clock is at fault",
            )
        return self.site_list

    # -- what arrives ---------------------------------------------------------------------------

    def offer_site_list(self, message: bytes) -> bool:
        """Take in a signed site list; whether it is new. Raises TrustRefused with all reasons."""
        if len(message) > SITE_LIST_MAX_BYTES:
            raise self._refusal(
                MessageInvalid(f"site list of {len(message)} bytes", hint="refused")
            )
        self._waiting_list = message
        # A list whose signer was revoked since is no floor: a thief may have set it high.
        held = self.site_list if self._authentic else None
        verdict = self._verify(
            message,
            last_version=held.version if held else None,
            last_sha512=self._list_sha512 if held else None,
        )
        if verdict.message_sha512 == self._list_sha512 and verdict.accepted:
            self._authentic = True
            return False
        if not verdict.accepted:
            self._count("site-list", [reason.code for reason in verdict.reasons])
        version = verdict.require().version
        if version.isdecimal():
            check_not_ahead("site list version", int(version), self._clock())
        durable.replace(self._state_dir / "site-list.smime", message)
        self._enforce(verdict)
        if self.farm.waiting is not None:
            self._guarded("farm", lambda: self.farm.take_up(self._keys(), self._clock()))
        waiting, self._waiting_desired = self._waiting_desired, None
        if waiting is not None:
            self._guarded("desired", lambda: self.offer_desired(waiting))
        return True

    def offer_crl(self, pem: bytes) -> bool:
        """Take in a CRL of the site's CA; whether it is newer. Raises TrustRefused.

        The site list in force is checked again: a catalogue certificate that is in the CRL now
        takes it out of force for new leases."""
        if not self._take_crl(pem):
            return False
        durable.replace(self._state_dir / "crl.pem", pem)
        held = _read(self._state_dir / "site-list.smime")
        if held is not None and self.site_list is not None:
            self._authentic = self._verify(held).authentic
            if not self._authentic:
                self._distrust()
        if self._waiting_list is not None:
            waiting = self._waiting_list
            self._guarded("site-list", lambda: self.offer_site_list(waiting))
        return True

    def offer_desired(self, envelope: bytes) -> Desired:
        """Take in a desired state. Raises TrustRefused or MessageInvalid."""
        try:
            desired = self._take_desired(envelope, self._generation)
        except DistribError as error:
            # Retained messages come in any order: the list that names the key may be next.
            self._waiting_desired = envelope
            raise self._refusal(error) from None
        self._waiting_desired = None
        durable.replace(self._state_dir / "desired.json", envelope)
        self._save_floors()
        return desired

    def offer_farm(self, envelope: bytes) -> FarmMap:
        """Take in a map of the farm. Raises TrustRefused or MessageInvalid."""
        try:
            self.farm.waiting = envelope
            return self.farm.take_up(self._keys(), self._clock())
        except DistribError as error:
            raise self._refusal(error) from None

    def offer_orders(self, envelope: bytes) -> Orders:
        """Take in orders, once. Raises TrustRefused or MessageInvalid."""
        try:
            payload = open_envelope(envelope, kind="orders", keys=self._keys())
            orders = decode(Orders, payload.encode(), what="orders")
            if orders.node != self._node:
                raise WrongNode(f"orders for {orders.node}", hint="ignored")
            if orders.sequence <= self._sequence:
                raise GenerationDown(f"orders {orders.sequence} again", hint="ignored")
            check_not_ahead("orders", orders.sequence, self._clock())
            if self._clock() > orders.expires_at + timedelta(seconds=ORDERS_GRACE_S):
                raise OrdersExpired(f"orders {orders.sequence} are late", hint="check the clocks")
        except DistribError as error:
            raise self._refusal(error) from None
        self._sequence = orders.sequence
        self._save_floors()
        return orders

    # -- inside ---------------------------------------------------------------------------------

    def _verify(
        self, message: bytes, *, last_version: str | None = None, last_sha512: str | None = None
    ) -> SiteVerdict:
        return verify_site_list(
            message,
            trust=self._trust,
            now=self._clock(),
            last_version=last_version,
            last_sha512=last_sha512,
            max_age_s=self._max_age_s,
            clock_skew_s=self._skew_s,
        )

    def _enforce(self, verdict: SiteVerdict) -> None:
        self.site_list = verdict.site_list
        self._list_sha512 = verdict.message_sha512
        self._authentic = True
        self._waiting_list = None
        images = () if self.site_list is None else self.site_list.images
        self._guarded("aliases", lambda: self.aliases.learn(images))

    def _keys(self) -> Mapping[str, Ed25519PublicKey]:
        if self.site_list is None or not self._authentic:
            raise NotReady("no site list to check orders by", hint="they are looked at again")
        return self.site_list.keys()

    def _take_desired(self, envelope: bytes, floor: int) -> Desired:
        payload = open_envelope(envelope, kind="desired", keys=self._keys())
        desired = decode(Desired, payload.encode(), what="desired")
        if desired.node != self._node:
            raise WrongNode(f"desired state for {desired.node}", hint="ignored")
        if desired.generation < floor:
            raise GenerationDown(
                f"desired state {desired.generation}, have {floor}",
                hint="an old message was replayed, or the head was set back",
            )
        check_not_ahead("desired state", desired.generation, self._clock())
        self.desired = desired
        self._generation = desired.generation
        return desired

    def _distrust(self) -> None:
        """The list in force was signed by somebody who is revoked now: so were its orders' keys."""
        self.desired = None
        self.farm.distrust()
        self._generation = self._sequence = 0
        self._save_floors()

    def _take_crl(self, pem: bytes) -> bool:
        if len(pem) > CRL_MAX_BYTES:
            raise self._refusal(MessageInvalid(f"CRL of {len(pem)} bytes", hint="refused"))
        crls = [crl for crl in _parse_crls(pem) if self._is_of_our_ca(crl)]
        if not crls:
            self.refused["crl-invalid"] += 1
            raise TrustRefused("CRL refused: not one of the site's CA", hint="the old one stays")
        newer = [crl for crl in crls if self._is_newer(crl)]
        # An older CRL that is replayed must not bring a revoked certificate back.
        replaced = {crl.issuer for crl in newer}
        kept = [crl for crl in self._trust.crls if crl.issuer not in replaced]
        self._trust = replace(self._trust, crls=(*kept, *newer))
        return bool(newer)

    def _is_newer(self, crl: x509.CertificateRevocationList) -> bool:
        held = (known for known in self._trust.crls if known.issuer == crl.issuer)
        return all(crl.last_update_utc > known.last_update_utc for known in held)

    def _is_of_our_ca(self, crl: x509.CertificateRevocationList) -> bool:
        for authority in (*self._trust.anchors, *self._trust.intermediates):
            if authority.subject == crl.issuer:
                try:
                    return crl.is_signature_valid(authority.public_key())  # type: ignore[arg-type]
                except (TypeError, ValueError):
                    return False
        return False

    def _save_floors(self) -> None:
        document = {
            "v": 1,
            "node": self._node,
            "generation": self._generation,
            "orders_sequence": self._sequence,
        }
        durable.replace(self._state_dir / "agent.json", json.dumps(document).encode())

    def _guarded(self, what: str, step: Callable[[], object]) -> None:
        try:
            step()
        except DistribError as error:
            log.warning("refused", what=what, code=error.code, why=error.message)

    def _count(self, what: str, codes: list[str]) -> None:
        for code in codes:
            self.refused[str(code)] += 1
        log.warning("refused", what=what, codes=[str(code) for code in codes])

    def _refusal(self, error: DistribError) -> DistribError:
        reasons = getattr(error, "reasons", ())
        self._count("order", [reason["code"] for reason in reasons] or [error.code])
        return error


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _parse_crls(pem: bytes) -> list[x509.CertificateRevocationList]:
    end = b"-----END X509 CRL-----"
    found = []
    for block in pem.split(end)[:-1]:
        try:
            found.append(read_whole(x509.load_pem_x509_crl(block.lstrip() + end + b"\n")))
        except ValueError:
            continue
    return found
