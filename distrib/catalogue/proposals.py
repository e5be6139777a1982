"""Images that users of the site bring: proposed, uploaded in parts, checked, for that user alone.

1. ``propose``: within the user's quota a row is made, ``expected``, with the user as its audience.
2. ``receive``: the file comes in parts, each where the last one ended; what has come outlives the
   client, the connection and the controller. The whole is held against its SHA-512.
3. The collector makes it raw and runs the checks, as with any image; what passed is approved for
   its user (``admission``).
4. An admin approves it for all, or denies it; until then its user may withdraw it.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import func, select

from distrib.catalogue.approval import Approval
from distrib.catalogue.clock import Clock
from distrib.catalogue.digest import sha512_of
from distrib.catalogue.preparation import ENDORSED_FILE, PART_FILE, make_room, mismatch
from distrib.catalogue.proposal import VERSION, Proposal, proposed
from distrib.catalogue.proposal_settings import ProposalSettings
from distrib.catalogue.quarantine import Quarantine, complete
from distrib.catalogue.quota import check_room, held_by
from distrib.catalogue.store import ImageStore, named_faults
from distrib.catalogue.versions import locked
from distrib.db.audit import record
from distrib.db.counters import CATALOGUE_CHANGES, PROPOSALS, rise
from distrib.db.models import AcceptedList, Image, ImageState
from distrib.db.outbox import begin_expiry
from distrib.db.references import USABLE, image_name
from distrib.db.session import Database
from distrib.errors import Conflict, Forbidden, NotFound, Revoked

PART_MAX_BYTES = 8 << 20
"""What is held in memory of an upload at a time."""


WITHDRAW_WAIT_S = 5.0
"""A part that is on its way is let come."""


class Proposals:
    """What users ask; ``changed`` is called when the site list may be due."""

    def __init__(
        self,
        *,
        database: Database,
        store: ImageStore,
        quarantine: Quarantine,
        approval: Approval,
        settings: ProposalSettings,
        clock: Clock,
        changed: Callable[[], object],
    ) -> None:
        self._database = database
        self._store = store
        self._quarantine = quarantine
        self._approval = approval
        self._settings = settings
        self._clock = clock
        self._changed = changed

    # -- what users ask -------------------------------------------------------------------------

    def propose(self, proposal: Proposal, *, actor: str) -> Image:
        """Expect the file. The same file of the same user is the image that there is already.

        Raises OperatorError, ImageError (its format), QuotaExceeded, Revoked (denied here).
        """
        proposal.check()
        now = self._clock()
        with self._database.transaction() as session:
            # One at a time: two that come together count each other.
            rise(session, PROPOSALS)
            held = held_by(session, proposal.user)
            same = [row for row in held if row.endorsed_sha512 == proposal.sha512.lower()]
            if same:
                return _again(same[0])
            check_room(self._settings, proposal.user, held, more_bytes=proposal.size_bytes)
            made = proposed(proposal, now=now, actor=actor)
            self._store.keep_word(made.word.sha512, made.document)
            session.add(made.word)
            session.flush()
            session.add(made.image)
            session.flush()
            record(
                session,
                at=now,
                actor=actor,
                action="image-proposed",
                subject=image_name(made.image),
                user=proposal.user,
                title=made.image.title,
                sha512=made.image.endorsed_sha512,
                size_bytes=proposal.size_bytes,
            )
            return made.image

    def of_user(self, user: str | None) -> list[Image]:
        """The images of a user, or of all users, newest first; without those that are gone."""
        with self._database.reading() as session:
            rows = held_by(session, user)
        return sorted(rows, key=lambda row: (row.since, row.identifier), reverse=True)

    def get(self, identifier: str, *, user: str | None) -> Image:
        """One proposed image, of that user if any is given. Raises NotFound."""
        with self._database.reading() as session:
            return _own(session.get(Image, (identifier.lower(), VERSION)), identifier, user)

    def received_bytes(self, row: Image) -> int:
        """How much of the file has come."""
        if row.state != ImageState.EXPECTED:
            return row.endorsed_size_bytes if row.sha512 else 0
        folder = self.folder(row)
        for name in (ENDORSED_FILE, PART_FILE):
            if (folder / name).exists():
                return (folder / name).stat().st_size
        return 0

    async def receive(
        self, identifier: str, *, offset: int, data: bytes, user: str | None, actor: str
    ) -> int:
        """Append to the file; how much there is now. When it is whole it is looked into, later.

        Raises NotFound, Conflict (no file is expected; another offset than what has come, which is
        ``received_bytes`` of the error), DigestMismatch (then nothing stays), NoSpace.
        """
        with self._quarantine.alone(f"{identifier.lower()}@{VERSION}"):
            # Only now: a row from before may be of an image that was withdrawn meanwhile.
            row = await asyncio.to_thread(self.get, identifier, user=user)
            folder = self.folder(row)
            received = await asyncio.to_thread(self._append, row, offset, data)
            if received < row.endorsed_size_bytes:
                return received
            with named_faults(folder):
                digest = await sha512_of(folder / PART_FILE)
            if digest != row.endorsed_sha512:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
                raise mismatch(row, f"SHA-512 is {digest[:16]}…, another was proposed")
            await asyncio.to_thread(self._complete, row, actor)
        return received

    def withdraw(self, identifier: str, *, user: str | None, actor: str) -> Image:
        """Take the image off, and its bytes off the head. Raises NotFound, Forbidden (approved for
        all: others count on it), Revoked (denied: it stays for the audit), Conflict (its file is
        being received or looked into for longer than is waited for). Blocks."""
        name = image_name(self.get(identifier, user=user))
        # Who has its file in hand would bring back what is removed here, for nobody.
        with (
            self._quarantine.alone(name, wait_s=WITHDRAW_WAIT_S),
            self._approval.alone(name, wait_s=WITHDRAW_WAIT_S),
        ):
            row = self._withdrawn(identifier, user=user, actor=actor)
            self._changed()
            self._remove_bytes(row)
        return row

    def _withdrawn(self, identifier: str, *, user: str | None, actor: str) -> Image:
        now = self._clock()
        with self._database.transaction() as session:
            found = session.get(Image, (identifier.lower(), VERSION), with_for_update=True)
            row = _own(found, identifier, user)
            name = image_name(row)
            if row.state == ImageState.DENIED:
                raise Revoked(
                    f"image {name} was denied by this site: {row.reason}",
                    hint="it stays on the head for the audit",
                    image=name,
                )
            if row.state in USABLE and "users" not in row.audience:
                raise Forbidden(
                    f"image {name} was approved for all",
                    hint="ask an admin: distrib image deny",
                    image=name,
                )
            was_usable = row.state in USABLE
            row.state, row.since = ImageState.REVOKED, now
            row.reason, row.fault = f"withdrawn by {actor}", {}
            if was_usable:
                begin_expiry(session, now, row)
                rise(session, CATALOGUE_CHANGES)
            record(
                session,
                at=now,
                actor=actor,
                action="image-withdrawn",
                subject=name,
                user=row.proposed_by,
            )
            if row.approved_at is None:
                # It never was on a list: the audit log says all that there was to it.
                session.flush()
                session.delete(row)
                session.flush()
                session.delete(session.get_one(AcceptedList, row.list_sha512))
        return row

    # -- inside ---------------------------------------------------------------------------------

    def folder(self, row: Image) -> Path:
        """Its folder in quarantine."""
        return self._store.quarantine_dir(row.identifier, row.version)

    def _append(self, row: Image, offset: int, data: bytes) -> int:
        name, folder = image_name(row), self.folder(row)
        part = folder / PART_FILE
        if row.state != ImageState.EXPECTED or (folder / ENDORSED_FILE).exists():
            raise Conflict(
                f"image {name}: no file is expected",
                hint="distrib image list --mine says what it is",
                image=name,
                received_bytes=self.received_bytes(row),
            )
        received = self.received_bytes(row)
        if offset != received or offset + len(data) > row.endorsed_size_bytes:
            raise Conflict(
                f"image {name}: {received} of {row.endorsed_size_bytes} bytes have come",
                hint="go on from there",
                image=name,
                received_bytes=received,
            )
        make_room(row, folder, have_bytes=received)
        with named_faults(part), part.open("ab") as file:
            file.write(data)
        return received + len(data)

    def _complete(self, row: Image, actor: str) -> None:
        complete(self.folder(row))
        with self._database.transaction() as session:
            fresh = locked(session, row.identifier, row.version)
            fresh.fault, fresh.fetched_bytes = {}, fresh.endorsed_size_bytes
            record(
                session,
                at=self._clock(),
                actor=actor,
                action="proposal-uploaded",
                subject=image_name(row),
                sha512=row.endorsed_sha512,
            )

    def moved_at(self, row: Image) -> datetime:
        """When the last part of its file came."""
        try:
            moved_s = (self.folder(row) / PART_FILE).stat().st_mtime
        except FileNotFoundError:
            return row.since
        return max(row.since, datetime.fromtimestamp(moved_s, UTC))

    def _remove_bytes(self, row: Image) -> None:
        shutil.rmtree(self.folder(row), ignore_errors=True)
        if row.approved_at is None:
            self._store.word_file(row.list_sha512).unlink(missing_ok=True)
        if row.infohash is None:
            return
        with self._database.reading() as session:
            others = session.scalar(
                select(func.count())
                .select_from(Image)
                .where(Image.infohash == row.infohash, Image.identifier != row.identifier)
            )
        if not others:
            place = self._store.image_file(row.infohash).parent
            shutil.rmtree(place, ignore_errors=True)


def _own(row: Image | None, identifier: str, user: str | None) -> Image:
    """What is not the user's own is not there for them."""
    if row is None or row.proposed_by is None or user not in {None, row.proposed_by}:
        raise NotFound(
            f"no proposed image {identifier[:80]!r}",
            hint="distrib image list --mine",
            image=identifier[:80],
        )
    return row


def _again(row: Image) -> Image:
    if row.state == ImageState.DENIED:
        raise Revoked(
            f"image {image_name(row)} was denied by this site: {row.reason}",
            hint="propose another file",
            image=image_name(row),
        )
    return row
