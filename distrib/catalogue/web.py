"""HTTP clients for what comes from outside: https only, by the system's CAs or a given one."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx

from distrib.errors import ConfigInvalid

CONNECT_S = 15.0
READ_S = 60.0
_REDIRECTS = 5


def web_client(
    *, ca_file: Path | None = None, auth: tuple[str, str] | None = None
) -> httpx.AsyncClient:
    """A client that verifies the server; proxies and credentials of the environment are not used.

    ``ca_file`` (PEM) takes the place of the system's CAs; ``auth`` is user name and password, which
    httpx does not send on to another host. Raises ConfigInvalid for a file that holds no CA.
    """
    try:
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigInvalid(
            f"{ca_file}: {error}"[:300], hint="a PEM file of CA certificates", path=str(ca_file)
        ) from None
    return httpx.AsyncClient(
        verify=context,
        auth=auth,
        timeout=httpx.Timeout(READ_S, connect=CONNECT_S),
        follow_redirects=True,
        max_redirects=_REDIRECTS,
        trust_env=False,
    )
