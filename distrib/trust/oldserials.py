"""Certificates whose serial number is 0 or negative: old grid CAs have one, RFC 5280 forbids it.

``cryptography`` still reads them, with a warning each time. They are old, not hostile: no warning
is due. The same goes for names with attributes of an odd length, as a country of three letters:
what counts is whether they are the names that are asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from cryptography.utils import CryptographyDeprecationWarning


@contextmanager
def old_serials_allowed() -> Iterator[None]:
    """Within this, reading such a certificate, or a CRL, does not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        warnings.filterwarnings("ignore", "Attribute's length must be", UserWarning)
        yield
