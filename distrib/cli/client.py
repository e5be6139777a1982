"""The API from outside: settings, TLS, token, and errors as they were raised on the head."""

from __future__ import annotations

import json
import os
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import click
import httpx
from pydantic import Field

from distrib.config import Settings
from distrib.errors import (
    ConfigInvalid,
    DistribError,
    ExitStatus,
    NetworkError,
    TimedOut,
    TrustRefused,
)

_CONNECT_S = 10.0
_READ_S = 30.0
#: Reading, hashing and moving an image on the head.
LONG_S = 2 * 3600.0


class ClientSettings(Settings):
    """``~/.config/distrib/client.toml``, or environment variables ``DISTRIB_URL``, …"""

    ENV_PREFIX: ClassVar[str] = "DISTRIB"

    url: str = Field("https://localhost:8443", description="the head's API")
    ca: Path | None = Field(None, description="CA of the head's certificate; else the system's")
    token: str | None = Field(None, description="the bearer token")
    token_file: Path | None = Field(None, description="a file that holds the token")
    sha1_endorsers: list[str] = Field(
        [], description="who may sign entries of the Marketplace with SHA-1: e-mail addresses, DNs"
    )


def load_settings(config: Path | None = None) -> ClientSettings:
    """Settings of the client: ``config``, ``$DISTRIB_CONFIG`` or the user's file, if it is there.

    Only the client's own variables are looked at: daemons have others of the same prefix.
    """
    file = config
    if file is None and os.environ.get("DISTRIB_CONFIG"):
        file = Path(os.environ["DISTRIB_CONFIG"])
    if file is None:
        base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
        usual = Path(base) / "distrib" / "client.toml"
        file = usual if usual.is_file() else None
    own = {f"DISTRIB_{name.upper()}" for name in ClientSettings.model_fields}
    environ = {name: value for name, value in os.environ.items() if name in own}
    return ClientSettings.load(file=file, environ=environ)


class ApiClient:
    """Calls under ``/api/v1``. Every failure is a DistribError, remote ones as they were raised."""

    def __init__(self, settings: ClientSettings) -> None:
        self._url = settings.url.rstrip("/")
        token = _token(settings)
        self._http = httpx.Client(
            base_url=f"{self._url}/api/v1",
            verify=_tls(settings),
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(_READ_S, connect=_CONNECT_S),
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, path: str, **query: Any) -> Any:
        """``GET``; the decoded body."""
        return self._call("GET", path, params=query or None)

    def post(self, path: str, body: object, *, timeout_s: float = _READ_S) -> Any:
        """``POST`` with a JSON body."""
        timeout = httpx.Timeout(timeout_s, connect=_CONNECT_S)
        return self._call("POST", path, json=body, timeout=timeout)

    def put(self, path: str, body: object) -> Any:
        """``PUT`` with a JSON body."""
        return self._call("PUT", path, json=body)

    def delete(self, path: str, **query: Any) -> Any:
        """``DELETE``."""
        return self._call("DELETE", path, params=query or None)

    def upload(self, path: str, chunks: Iterator[bytes], *, size_bytes: int) -> Any:
        """``PUT`` a file of known size, streamed."""
        return self._call(
            "PUT",
            path,
            content=chunks,
            headers={
                "Content-Length": str(size_bytes),
                "Content-Type": "application/octet-stream",
            },
            timeout=httpx.Timeout(LONG_S, connect=_CONNECT_S),
        )

    def lines(self, path: str) -> Iterator[Any]:
        """``GET`` of JSON lines, as they come; waits for the next as long as it takes."""
        timeout = httpx.Timeout(None, connect=_CONNECT_S)
        with self._named_faults(), self._http.stream("GET", path, timeout=timeout) as response:
            if response.is_error:
                response.read()
                raise _remote_error(response)
            for line in response.iter_lines():
                if line:
                    yield json.loads(line)

    def _call(self, method: str, path: str, **options: Any) -> Any:
        with self._named_faults():
            response = self._http.request(method, path, **options)
        if response.is_error:
            raise _remote_error(response)
        try:
            return response.json()
        except ValueError:
            raise NetworkError(
                f"{self._url}: the answer is not JSON", hint="is this the head's API?"
            ) from None

    @contextmanager
    def _named_faults(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException as error:
            raise TimedOut(
                f"{self._url}: no answer in time ({type(error).__name__})",
                hint="is the controller busy or gone?",
            ) from None
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ConfigInvalid(
                f"url = {self._url!r}: {error}", hint="e.g. https://head.example.org:8443"
            ) from None
        except httpx.TransportError as error:
            hint = "is the controller running, and url right in client.toml?"
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                hint = "set ca in client.toml to the site's CA, and url to the name in it"
            what = re.sub(r"\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
            raise NetworkError(f"{self._url}: {what}", hint=hint) from None


@contextmanager
def connected() -> Iterator[ApiClient]:
    """A client by the settings of this command line."""
    client = ApiClient(load_settings(click.get_current_context().find_root().obj))
    try:
        yield client
    finally:
        client.close()


def path_of(*parts: object) -> str:
    """A path of the API with every part quoted."""
    return "/" + "/".join(quote(str(part), safe="") for part in parts)


def _token(settings: ClientSettings) -> str | None:
    if settings.token is not None or settings.token_file is None:
        return settings.token
    try:
        return settings.token_file.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid(
            f"token_file = {settings.token_file}: {error}", hint="a file with the token alone"
        ) from None


def _tls(settings: ClientSettings) -> ssl.SSLContext:
    if settings.ca is None:
        return ssl.create_default_context()
    try:
        return ssl.create_default_context(cafile=str(settings.ca.expanduser()))
    except (OSError, ssl.SSLError) as error:
        raise ConfigInvalid(
            f"ca = {settings.ca}: {error}", hint="the PEM file of the site's CA"
        ) from None


def _remote_error(response: httpx.Response) -> DistribError:
    try:
        return remote_error(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return NetworkError(
            f"{response.url}: HTTP {response.status_code}", hint="is this the head's API?"
        )


def remote_error(fields: dict[str, Any]) -> DistribError:
    """The error that the head raised; of the same class where we know its code.

    Raises ValueError, KeyError or TypeError for what describes no error.
    """
    code, message = str(fields["code"]), str(fields["message"])
    hint, ids = str(fields.get("hint", "")), dict(fields.get("ids", {}))
    own = {"code": code, "exit_status": ExitStatus(fields["exit"])}
    if code == TrustRefused.code:
        reasons = tuple(fields.get("reasons", ()))
        return TrustRefused(message, hint=hint, reasons=reasons, **ids)
    known = (kind for kind in _classes(DistribError) if kind.code == code)
    # A head that is newer than this client may have codes that it does not know.
    remote: type[DistribError] = type("RemoteError", (next(known, DistribError),), own)
    return remote(message, hint=hint, **ids)


def _classes(base: type[DistribError]) -> Iterator[type[DistribError]]:
    yield base
    for kind in base.__subclasses__():
        yield from _classes(kind)
