"""An endorser's private key, and where its passphrase comes from."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from distrib.cli.documents import read_file
from distrib.errors import ConfigInvalid

PASSPHRASE_VARIABLE = "DISTRIB_KEY_PASSPHRASE"  # noqa: S105  (a name, no secret)
_MAX_KEY_BYTES = 64 * 1024


def read_signing_key(path: Path, passphrase_file: Path | None = None) -> PrivateKeyTypes:
    """The key in ``path`` (PEM). Its passphrase, where it has one: from ``passphrase_file`` (first
    line), the environment's ``DISTRIB_KEY_PASSPHRASE``, or typed on a terminal.

    ``ConfigInvalid`` if there is none, or it is wrong.
    """
    data = read_file(path, max_bytes=_MAX_KEY_BYTES)
    try:
        try:
            return load_pem_private_key(data, None)
        except TypeError:
            return load_pem_private_key(data, _passphrase(path, passphrase_file))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigInvalid(
            f"{path} is no private key that can be read here, or the passphrase is another",
            hint="give a PEM private key, and its passphrase if it has one",
            path=str(path),
        ) from None


def _passphrase(path: Path, passphrase_file: Path | None) -> bytes:
    if passphrase_file is not None:
        return read_file(passphrase_file, max_bytes=_MAX_KEY_BYTES).split(b"\n", 1)[0].rstrip(b"\r")
    stated = os.environ.get(PASSPHRASE_VARIABLE)
    if stated is not None:
        return os.fsencode(stated)
    if not sys.stdin.isatty():
        raise ConfigInvalid(
            f"{path} has a passphrase, and there is no terminal to ask for it",
            hint=f"--passphrase-file, or {PASSPHRASE_VARIABLE} in the environment",
            path=str(path),
        )
    return str(click.prompt("Passphrase of the key", hide_input=True, err=True)).encode()
