"""Everything the controller can be told: one class a section."""

from __future__ import annotations

import ipaddress
import uuid
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from distrib.api.server import ApiSettings
from distrib.bus.messages import Caps, ClassCaps
from distrib.bus.mqtt import BusSettings
from distrib.catalogue.intake_settings import IntakeSettings
from distrib.catalogue.proposal_settings import ProposalSettings
from distrib.config import Section, Settings
from distrib.db.session import sqlite_url
from distrib.events.settings import EventsSettings
from distrib.rollout.prestage_settings import PrestageSettings


class SiteSettings(Section):
    """Who the site is."""

    name: str = Field("Example Site", min_length=1, description="the site's name")
    identifier: str = Field("", description="UUID of the site list; empty: derived from the name")
    url: str = Field(
        "https://localhost:8443/api/v1/site-list", description="where the site list is fetched"
    )
    email: str = Field("", description="whom to write to about the site list")


class DatabaseSettings(Section):
    """The database."""

    url: str = Field("", description="SQLAlchemy URL; empty: distrib.db in the state directory")


class TrustSettings(Section):
    """Whom the controller believes."""

    endorsers: Path = Field(
        Path("/etc/grid-security/certificates"), description="CAs and CRLs of endorsers"
    )
    site: Path = Field(
        Path("/etc/distrib/trust"), description="the site's CA and its CRL, which nodes are sent"
    )
    crls: Literal["require", "if-present"] = Field(
        "require", description="whether every CA of endorsers must have a CRL"
    )
    policies: Literal["require", "if-present"] = Field(
        "if-present",
        description="whether every CA of endorsers must have a namespaces or signing_policy file",
    )


class CatalogueSettings(Section):
    """Who signs the site list."""

    cert: Path = Field(
        Path("/etc/distrib/catalogue.pem"), description="certificate with the role catalogue"
    )
    key: Path = Field(Path("/etc/distrib/catalogue.key"), description="its private key")
    passphrase_file: Path | None = Field(
        None,
        description="file with the key's passphrase; else the systemd credential"
        " catalogue-passphrase, else the variable DISTRIB_CATALOGUE_PASSPHRASE",
    )
    supersede_grace_s: float = Field(
        30 * 86400, ge=0, description="how long a version that was replaced may be gone back to"
    )


class SiteListSettings(Section):
    """How fresh the site list is kept."""

    resign_s: float = Field(3600, gt=0, description="signed anew at least this often")
    max_age_s: float = Field(72 * 3600, gt=0, description="age at which it expires")


class RolloutSettings(Section):
    """Rollouts."""

    silent_s: float = Field(
        120, gt=0, description="a node that should report and does not is counted as failed"
    )
    token_bps: int = Field(
        62_500_000,
        gt=0,
        description="what nodes whose swarm brings nothing may fetch from seeders otherwise, all"
        " together, bytes per second",
    )


class FarmSettings(Section):
    """The farm's networks. Rates are bytes per second of each node, 0: no cap; `distrib swarm caps`
    changes them at run time."""

    foreign: tuple[str, ...] = Field(
        (), description="networks outside of the inventory whose peers are served, too"
    )
    rack_download_bps: int = Field(0, ge=0, description="cap within a rack, fetching")
    rack_upload_bps: int = Field(0, ge=0, description="cap within a rack, serving")
    room_download_bps: int = Field(0, ge=0, description="cap within a room, fetching")
    room_upload_bps: int = Field(0, ge=0, description="cap within a room, serving")
    elsewhere_download_bps: int = Field(0, ge=0, description="cap with all others, fetching")
    elsewhere_upload_bps: int = Field(0, ge=0, description="cap with all others, serving")

    @field_validator("foreign")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            ipaddress.ip_network(text)
        return value

    @property
    def caps(self) -> ClassCaps:
        """As nodes are told them."""
        return ClassCaps(
            rack=Caps(download_bps=self.rack_download_bps, upload_bps=self.rack_upload_bps),
            room=Caps(download_bps=self.room_download_bps, upload_bps=self.room_upload_bps),
            elsewhere=Caps(
                download_bps=self.elsewhere_download_bps, upload_bps=self.elsewhere_upload_bps
            ),
        )


class ControllerSettings(Settings):
    """Everything the controller can be told."""

    ENV_PREFIX: ClassVar[str] = "DISTRIB_CONTROLLER"

    state_dir: Path = Field(Path("/var/lib/distrib"), description="what must survive a restart")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe log line that is written"
    )
    site: SiteSettings = SiteSettings()
    database: DatabaseSettings = DatabaseSettings()
    trust: TrustSettings = TrustSettings()
    catalogue: CatalogueSettings = CatalogueSettings()
    site_list: SiteListSettings = SiteListSettings()
    rollout: RolloutSettings = RolloutSettings()
    farm: FarmSettings = FarmSettings()
    events: EventsSettings = EventsSettings()
    intake: IntakeSettings = IntakeSettings()
    proposals: ProposalSettings = ProposalSettings()
    prestage: PrestageSettings = PrestageSettings()
    api: ApiSettings = ApiSettings()
    bus: BusSettings = BusSettings()

    @property
    def database_url(self) -> str:
        """The database's URL, the default filled in."""
        return self.database.url or sqlite_url(self.state_dir / "distrib.db")

    @property
    def site_list_identifier(self) -> str:
        """The UUID of the site list."""
        named = uuid.uuid5(uuid.NAMESPACE_URL, f"distrib:site-list:{self.site.name}")
        return self.site.identifier or str(named)
