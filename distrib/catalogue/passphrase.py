"""The passphrase of the catalogue's key, so that the list is signed with nobody at the keyboard."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from distrib.errors import ConfigInvalid

CREDENTIAL = "catalogue-passphrase"
VARIABLE = "DISTRIB_CATALOGUE_PASSPHRASE"


def find_passphrase(
    file: Path | None = None, *, environ: Mapping[str, str] = os.environ
) -> bytes | None:
    """From ``file``, else the systemd credential (systemd.exec(5), ``LoadCredential=``), else the
    environment; None where there is none. One line end after it is not part of it.

    Raises ConfigInvalid for a file that is named and cannot be read.
    """
    directory = environ.get("CREDENTIALS_DIRECTORY")
    credential = Path(directory) / CREDENTIAL if directory else None
    if file is None and credential is not None and credential.exists():
        file = credential
    if file is not None:
        try:
            return file.read_bytes().removesuffix(b"\n").removesuffix(b"\r")
        except OSError as error:
            raise ConfigInvalid(
                f"{file}: {error.strerror}",
                hint="the passphrase of the catalogue's key; see catalogue.passphrase_file",
                path=str(file),
            ) from None
    given = environ.get(VARIABLE)
    return given.encode() if given else None
