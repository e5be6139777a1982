"""Passwords of subscriptions: one file each, for the controller alone; never in the database."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distrib.catalogue.store import named_faults, write_atomically
from distrib.errors import ConfigInvalid


@dataclass(frozen=True)
class Passwords:
    """The files ``subscription-<id>`` (0600) in ``folder`` (0700)."""

    folder: Path

    def keep(self, subscription_id: int, password: str | None) -> None:
        """Keep the password; None forgets what may be there. Raises StorageFailed, NoSpace."""
        if password is None:
            self.forget(subscription_id)
            return
        with named_faults(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.chmod(0o700)
        write_atomically(self._file(subscription_id), password.encode(), mode=0o600)

    def of(self, subscription_id: int) -> str:
        """The password. Raises ConfigInvalid where it is gone."""
        file = self._file(subscription_id)
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "is no text"
            raise ConfigInvalid(
                f"{file}: {why}", hint="unsubscribe, and subscribe with the password again"
            ) from None

    def forget(self, subscription_id: int) -> None:
        """No password from now on."""
        with named_faults(self.folder):
            self._file(subscription_id).unlink(missing_ok=True)

    def _file(self, subscription_id: int) -> Path:
        return self.folder / f"subscription-{subscription_id}"
