"""What comes from outside over https: by the system's CAs or a given one, and nothing else.

Redirects are followed by hand: their bodies are never read, they lead to https only, and user name
and password stay with the host that they were given for. Proxies and credentials of the environment
are not used.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path

import httpx

from distrib.errors import ConfigInvalid, Forbidden, NetworkError, NotFound, TimedOut

CONNECT_S = 15.0
READ_S = 60.0
MAX_REDIRECTS = 5
OK, PART, NOT_MODIFIED = 200, 206, 304

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


def web_client(*, ca_file: Path | None = None, connect_s: float = CONNECT_S) -> httpx.AsyncClient:
    """A client that verifies the server; use it through ``opened``.

    Who bounds the whole by a time of his own gives a ``connect_s`` below it: a TLS handshake that
    is cancelled from outside leaves its socket open until it is collected (httpcore 1.0). Raises
    ConfigInvalid for a file that holds no CA.
    """
    return httpx.AsyncClient(
        verify=tls_context(ca_file),
        timeout=httpx.Timeout(READ_S, connect=connect_s),
        follow_redirects=False,
        trust_env=False,
        # No server is told anything that another one said, or said before.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
    )


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """``ca_file`` (PEM) takes the place of the system's CAs. Raises ConfigInvalid."""
    try:
        return ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigInvalid(
            f"{ca_file}: {error}"[:300], hint="a PEM file of CA certificates", path=str(ca_file)
        ) from None


def is_file_url(url: str) -> bool:
    """Whether it names a file of the head; of what is no URL we say no."""
    return url[:5].lower() == "file:"


def web_url(url: str) -> httpx.URL:
    """The URL, if it can be fetched: https, a host, no user name in it. Raises ConfigInvalid."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise ConfigInvalid(f"{url[:200]!r}: {error}", hint="https://HOST/PATH") from None
    if parsed.scheme != "https" or not parsed.host:
        raise ConfigInvalid(
            f"{url[:200]!r} is not https", hint="https://HOST/PATH: nothing comes in in the clear"
        )
    if parsed.port is not None and not 0 < parsed.port < 1 << 16:
        raise ConfigInvalid(
            f"{url[:200]!r} has a port that there cannot be", hint="https://HOST:PORT/PATH"
        )
    if parsed.userinfo:
        raise ConfigInvalid(
            f"there is a user name in the URL of {parsed.host}",
            hint="give user name and password apart: URLs are shown and logged",
        )
    return parsed


@asynccontextmanager
async def opened(
    client: httpx.AsyncClient,
    url: str,
    *,
    auth: tuple[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[httpx.Response]:
    """The answer to a ``GET``, its body unread: read it with ``aiter_raw``.

    ``auth`` is user name and password. Its status is ``OK``, ``PART`` or ``NOT_MODIFIED``, and its
    body is not encoded: what is compressed on the way could grow without bound here. Raises
    ConfigInvalid, NotFound, Forbidden, TimedOut, NetworkError.
    """
    target = first = web_url(url)
    wanted = {**(headers or {}), "Accept-Encoding": "identity"}
    credentials = httpx.BasicAuth(*auth) if auth else None
    with named_web_faults(url):
        for _ in range(MAX_REDIRECTS + 1):
            request = client.build_request("GET", target, headers=wanted)
            response = await _sent(client, request, credentials)
            try:
                if response.status_code in _REDIRECTS:
                    target = _redirected(response, first)
                    if not _same_origin(target, first):
                        # Once away from its host they do not come back either.
                        credentials = None
                    continue
                _check(response)
                yield response
                return
            finally:
                await response.aclose()
    raise NetworkError(f"{first}: more than {MAX_REDIRECTS} redirects", hint="ask who runs it")


async def _sent(
    client: httpx.AsyncClient, request: httpx.Request, auth: httpx.BasicAuth | None
) -> httpx.Response:
    """The answer. httpx looks where a redirect leads, and lets through what hostile ones cause."""
    try:
        return await client.send(request, stream=True, auth=auth)
    except (httpx.InvalidURL, ValueError) as error:
        raise NetworkError(
            f"{request.url}: an answer that cannot be read: {error}"[:500], hint="ask who runs it"
        ) from None


@contextmanager
def named_web_faults(url: str) -> Iterator[None]:
    """What httpx says, as TimedOut or NetworkError that name ``url``."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise TimedOut(
            f"{url}: no answer in time ({type(error).__name__})", hint="is the server busy or gone?"
        ) from None
    except (httpx.TransportError, httpx.StreamError) as error:
        hint = "is the server running, and the URL right?"
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            hint = "which CA certified the server? --ca-file names it"
        what = re.sub(r"\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
        raise NetworkError(f"{url}: {what}"[:500], hint=hint) from None


def _redirected(response: httpx.Response, first: httpx.URL) -> httpx.URL:
    following = response.next_request
    if following is None:
        raise NetworkError(
            f"{response.url}: a redirect to nowhere (HTTP {response.status_code})",
            hint="ask who runs it",
        )
    try:
        return web_url(str(following.url))
    except ConfigInvalid as error:
        raise NetworkError(
            f"{first}: it redirects to what is not fetched: {error.message}",
            hint="ask who runs it",
        ) from None


def _same_origin(one: httpx.URL, other: httpx.URL) -> bool:
    return (one.host, one.port or 443) == (other.host, other.port or 443)


def _check(response: httpx.Response) -> None:
    status, url = response.status_code, response.url
    if status in {401, 403}:
        raise Forbidden(f"{url}: HTTP {status}", hint="user name and password, or the token")
    if status in {404, 410}:
        raise NotFound(f"{url}: HTTP {status}", hint="is the URL right?")
    if status not in {OK, PART, NOT_MODIFIED}:
        raise NetworkError(f"{url}: HTTP {status}", hint="ask who runs it")
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"identity", ""}:
        raise NetworkError(
            f"{url}: sent as {encoding[:40]!r} though it was asked for as it is",
            hint="compression on the way is not accepted: it has no bound",
        )
