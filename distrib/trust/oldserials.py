"""Certificates whose serial number is 0 or negative: old grid CAs have one, RFC 5280 forbids it.

``cryptography`` still reads them, with a warning each time. They are old, not hostile: no warning
is due.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from cryptography.utils import CryptographyDeprecationWarning


@contextmanager
def old_serials_allowed() -> Iterator[None]:
    """Within this, reading such a certificate does not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        yield
