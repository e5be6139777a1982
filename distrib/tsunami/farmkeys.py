"""The key by which nodes fetch from each other: made, and rotated in three steps without a gap.

A directory on the head, or wherever nodes are deployed from:

    farm          the private key that nodes log in with: their ``tsunami.identity``
    next          the one that follows, from step 1 to step 2
    retired.pub   the one before, from step 2 to step 3
    admitted.pub  every key that nodes are to admit now: ``distrib-agent serve-pieces --install``

Step 1 makes ``next`` and has it admitted beside ``farm``; step 2 makes it ``farm``; step 3 has the
one before admitted no more. Before each step nodes have what the step before changed: then no node
ever shows a key that another does not admit. A step that was interrupted is repeated as a whole.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from distrib.errors import Conflict, NotFound, OperatorError, StorageFailed
from distrib.tsunami.admitting import read_public_keys
from distrib.tsunami.keys import Identity, fingerprint

REMARK: Final = "distrib-farm"


class Stage(Enum):
    """Where a rotation is."""

    STEADY = "steady"
    ANNOUNCED = "announced"
    SWITCHED = "switched"


@dataclass(frozen=True)
class FarmKeys:
    """The keys of a farm in ``directory``."""

    directory: Path

    @property
    def farm(self) -> Path:
        return self.directory / "farm"

    @property
    def next(self) -> Path:
        return self.directory / "next"

    @property
    def admitted(self) -> Path:
        return self.directory / "admitted.pub"

    @property
    def _retired(self) -> Path:
        return self.directory / "retired.pub"

    @property
    def stage(self) -> Stage:
        """Raises NotFound where there are no keys."""
        if not self.farm.is_file():
            raise NotFound(f"{self.directory}: no keys of a farm", hint="distrib tsunami keys make")
        if self.next.exists():
            return Stage.ANNOUNCED
        return Stage.SWITCHED if self._retired.exists() else Stage.STEADY

    def make(self) -> None:
        """Make the first key. Raises Conflict where there is one, StorageFailed."""
        if self.farm.exists():
            raise Conflict(f"{self.farm}: is there already", hint="distrib tsunami keys rotate")
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            private, public = _made()
            self._admit(public)
            self._write(self.farm, private, 0o600)
        except OSError as error:
            raise self._failed(error) from None

    def rotate(self) -> Stage:
        """Do the next step; where it led. Raises NotFound, OperatorError, StorageFailed."""
        try:
            match self.stage:
                case Stage.STEADY:
                    # First what nodes are to admit: a key that is there has been told of.
                    private, public = _made()
                    self._admit(_public(self.farm), public)
                    self._write(self.next, private, 0o600)
                case Stage.ANNOUNCED:
                    self._write(self._retired, _public(self.farm), 0o644)
                    self.next.replace(self.farm)
                case Stage.SWITCHED:
                    self._admit(_public(self.farm))
                    self._retired.unlink()
        except OSError as error:
            raise self._failed(error) from None
        return self.stage

    def fingerprints(self) -> list[str]:
        """Of the keys to be admitted, as ``ssh-keygen -l`` shows them. Raises NotFound,
        OperatorError where the file is not as it was written."""
        lines = read_public_keys(self.admitted)
        try:
            return [fingerprint(base64.b64decode(line.split()[1])) for line in lines]
        except ValueError:
            raise OperatorError(
                f"{self.admitted}: not a public key", hint="lines of .pub files"
            ) from None

    def identities(self) -> dict[str, Identity]:
        """The private keys that are here, by name: each is to be admitted by every node."""
        there = (file for file in (self.farm, self.next) if file.exists())
        return {file.name: Identity.read(file) for file in there}

    def _admit(self, *keys: str) -> None:
        self._write(self.admitted, "".join(keys), 0o644)

    def _write(self, file: Path, text: str, mode: int) -> None:
        fresh = file.with_name(f".{file.name}.new")
        fresh.unlink(missing_ok=True)
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(fd, "w", encoding="ascii") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(fd)
        fresh.replace(file)

    def _failed(self, error: OSError) -> StorageFailed:
        return StorageFailed(
            f"{error.filename or self.directory}: {error.strerror}", hint="check its directory"
        )


def _made() -> tuple[str, str]:
    """A new key: its private half, and its public one as a line."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return private.decode("ascii"), f"{public.decode('ascii')} {REMARK}\n"


def _public(file: Path) -> str:
    key = Identity.read(file).key
    return f"{key.get_name()} {key.get_base64()} {REMARK}\n"
