"""All parts of the catalogue over one database and one state directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Self

from distrib.catalogue.acceptance import Acceptance
from distrib.catalogue.admission import Admission
from distrib.catalogue.approval import Approval
from distrib.catalogue.clock import Clock, utc_now
from distrib.catalogue.collecting import Collector
from distrib.catalogue.conversion import Conversion
from distrib.catalogue.denial import Denial
from distrib.catalogue.endorsers import Endorsers
from distrib.catalogue.evidence import Evidence
from distrib.catalogue.examination import Examination
from distrib.catalogue.fetching import Fetcher
from distrib.catalogue.history import History
from distrib.catalogue.identity import SiteIdentity
from distrib.catalogue.intake import Intake
from distrib.catalogue.intake_settings import IntakeSettings
from distrib.catalogue.passwords import Passwords
from distrib.catalogue.polling import Poll
from distrib.catalogue.preparation import Preparation
from distrib.catalogue.proposal_settings import ProposalSettings
from distrib.catalogue.proposals import Proposals
from distrib.catalogue.publisher import RESIGN_INTERVAL, Publisher
from distrib.catalogue.quarantine import Quarantine
from distrib.catalogue.rechecking import Rechecking
from distrib.catalogue.schedule import Schedule, next_in
from distrib.catalogue.store import ImageStore
from distrib.catalogue.subscriptions import Subscriptions
from distrib.catalogue.taking import Taking
from distrib.catalogue.versions import SUPERSEDE_GRACE
from distrib.db.session import Database
from distrib.inspection.sandbox import Sandbox
from distrib.trust.chain import TrustMaterial
from distrib.trust.directory import load_trust_directory
from distrib.trust.namespaces import PolicyUse
from distrib.trust.revocation import CrlPolicy
from distrib.trust.sitelist import DEFAULT_MAX_AGE_S


@dataclass(frozen=True)
class Catalogue:
    """What the API and the controller use."""

    store: ImageStore
    endorsers: Endorsers
    intake: Intake
    quarantine: Quarantine
    approval: Approval
    denial: Denial
    history: History
    publisher: Publisher
    subscriptions: Subscriptions
    schedule: Schedule
    taking: Taking
    collector: Collector
    examination: Examination
    rechecking: Rechecking
    proposals: Proposals
    admission: Admission

    @classmethod
    def open(
        cls,
        *,
        database: Database,
        state_dir: Path,
        endorser_trust: Path,
        identity: SiteIdentity | Callable[[], SiteIdentity],
        site_trust: Callable[[], TrustMaterial] | None = None,
        clock: Clock = utc_now,
        crls: CrlPolicy = "require",
        policies: PolicyUse = "if-present",
        grace: timedelta = SUPERSEDE_GRACE,
        max_age_s: float = DEFAULT_MAX_AGE_S,
        resign_interval: timedelta = RESIGN_INTERVAL,
        on_published: Callable[[bytes], None] | None = None,
        fetcher: Fetcher | None = None,
        intake: IntakeSettings | None = None,
        proposals: ProposalSettings | None = None,
    ) -> Self:
        """Make the folders and put in order what a crash left; publishes nothing yet.

        ``endorser_trust`` is the directory of the endorsers' CAs and CRLs, read at every use;
        ``site_trust`` gives the site's own CA, for the check of each list before it leaves.
        """
        store = ImageStore(state_dir)
        store.prepare()
        settings = intake or IntakeSettings()
        sandbox = Sandbox.of_user(settings.user)
        examination = Examination(settings, sandbox, clock)
        preparation = Preparation(
            database=database,
            store=store,
            clock=clock,
            conversion=Conversion(sandbox, settings.max_raw_bytes, settings.convert_s),
            examination=examination,
            proposed_max_bytes=(proposals or ProposalSettings()).max_bytes,
        )
        quarantine = Quarantine(preparation)
        quarantine.recover()
        acceptance = Acceptance(
            store=store,
            trust=lambda: load_trust_directory(endorser_trust, policies=policies),
            clock=clock,
            crls=crls,
        )
        publisher = Publisher(
            database=database,
            store=store,
            identity=identity,
            clock=clock,
            trust=site_trust,
            max_age_s=max_age_s,
            resign_interval=resign_interval,
            on_published=on_published,
        )
        passwords, evidence = Passwords(state_dir / "secrets"), Evidence(state_dir / "refused")
        poll = Poll(
            database=database,
            store=store,
            acceptance=acceptance,
            passwords=passwords,
            evidence=evidence,
            fetcher=fetcher or Fetcher(),
            clock=clock,
            next_in=next_in,
        )
        approval = Approval(
            database=database, store=store, clock=clock, grace=grace, examination=examination
        )
        proposed = Proposals(
            database=database,
            store=store,
            quarantine=quarantine,
            approval=approval,
            settings=proposals or ProposalSettings(),
            clock=clock,
            changed=publisher.publish_if_due,
        )
        admission = Admission(
            database=database,
            proposals=proposed,
            examination=examination,
            approval=approval,
            settings=proposals or ProposalSettings(),
            clock=clock,
            changed=publisher.publish_if_due,
        )
        return cls(
            store=store,
            endorsers=Endorsers(database, clock=clock),
            intake=Intake(database=database, acceptance=acceptance, clock=clock),
            quarantine=quarantine,
            approval=approval,
            denial=Denial(database=database, store=store, clock=clock, grace=grace),
            history=History(database=database, store=store),
            publisher=publisher,
            subscriptions=Subscriptions(
                database=database, passwords=passwords, evidence=evidence, clock=clock
            ),
            schedule=Schedule(database=database, poll=poll, publisher=publisher, clock=clock),
            taking=Taking(database=database, clock=clock),
            examination=examination,
            rechecking=Rechecking(database, store, clock, examination, approval.alone),
            collector=Collector(
                database=database,
                quarantine=quarantine,
                preparation=preparation,
                passwords=passwords,
                settings=settings,
                clock=clock,
                on_prepared=admission.admit,
            ),
            proposals=proposed,
            admission=admission,
        )
