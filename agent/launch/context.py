"""The context disc of a launch: one ISO that satisfies HEPiX and cloud-init's NoCloud.

Label ``cidata`` with ``meta-data`` and ``user-data`` (cloud-init), ``context.sh``, ``prolog.sh``,
``epilog.sh`` (HEPiX, which asks for no label), and the job: ``job.sh``, ``args``, ``environment``,
``stdin``, ``files.tar`` (docs/formats/context.md). What is the site's comes from a folder that an
administrator keeps; what is the job's comes with the launch. A disc is readable by whoever runs in
the guest: secrets do not belong on it. OpenNebula's guests look for a disc of their own.
"""

from __future__ import annotations

import base64
import contextlib
import io
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from agent.launch.runner import HEPIX_EPILOG, HEPIX_PROLOG, RUNNER
from distrib.errors import ConfigInvalid, OperatorError

LABEL = "cidata"
MAX_FILE_BYTES = 16 << 20
"""Bound of any one file on the disc."""

_OURS = (
    *("meta-data", "job.sh", "args", "environment", "stdin", "files.tar", "share", "runner.sh"),
    "job-context.sh",
    "site-epilog.sh",
)
_SHELLS = re.compile(rb"#! ?(/usr)?/bin/(env )?(ba|da|k)?sh\b")
_SECRETS = re.compile(rb"PRIVATE KEY( BLOCK)?-----|PuTTY-User-Key-File")
_SECRET_NAMES = re.compile(r".*\.(key|p12|pfx|jks|keytab)|id_(rsa|dsa|ecdsa|ed25519)|x509up.*")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAMES_OF_INPUTS = {"stdin": "stdin", "files": "files.tar"}
_BOUNDARY = "==distrib-context=="


@dataclass(frozen=True)
class SitePart:
    """The site's files, by name: ``context.sh``, ``prolog.sh``, ``epilog.sh``, ``user-data``, and
    whatever those need."""

    files: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, data in self.files.items():
            if not _FILE_NAME.fullmatch(name) or name in _OURS:
                raise ConfigInvalid(f"a site's context file may not be called {name!r}", path=name)
            _bounded(name, data)
            if _SECRETS.search(data) or _SECRET_NAMES.fullmatch(name):
                raise ConfigInvalid(
                    f"{name} holds a private key, and every job can read the context disc",
                    hint="let the guest fetch its secrets with its own identity",
                    path=name,
                )

    @classmethod
    def from_directory(cls, directory: Path) -> SitePart:
        """Read the site's folder: plain files, no subfolders; hidden files are left out.

        Raises ConfigInvalid for what may not be on a disc."""
        files = {}
        for path in sorted(directory.iterdir()):
            if path.name.startswith("."):
                continue
            if not path.is_file():
                raise ConfigInvalid(f"not a plain file: {path}", path=str(path))
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ConfigInvalid(f"larger than {MAX_FILE_BYTES} bytes: {path}", path=str(path))
            files[path.name] = path.read_bytes()
        return cls(files)


@dataclass(frozen=True)
class JobPart:
    """The job's files. ``instance_id`` must be new at every launch: cloud-init does nothing in a
    guest that it has seen before. ``share``: the tag of a shared directory, if there is one;
    ``context``: a script that is run before the job (``start``) and after it (``stop``)."""

    instance_id: str
    script: bytes
    args: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    hostname: str = "guest"
    share: str = ""
    context: bytes = b""

    def __post_init__(self) -> None:
        if not self.script.strip():
            raise OperatorError("the job script is empty")
        _bounded("job.sh", self.script)
        _bounded("job-context.sh", self.context)
        for name in self.environment:
            if not _VARIABLE.fullmatch(name):
                raise OperatorError(f"not the name of an environment variable: {name!r}")
        for text in (*self.args, *self.environment.values()):
            if "\0" in text:
                raise OperatorError("an argument or variable of the job holds a NUL")


def files_of(site: SitePart, job: JobPart) -> dict[str, bytes]:
    """All files of the disc, by name."""
    files = dict(site.files)
    if (prolog := files.get("prolog.sh")) is not None and _is_shell(prolog):
        files["prolog.sh"] = HEPIX_PROLOG + prolog
    if (epilog := files.get("epilog.sh")) is not None:
        files["site-epilog.sh"] = epilog
    files["epilog.sh"] = HEPIX_EPILOG.encode()
    files["runner.sh"] = RUNNER.encode()
    files["meta-data"] = (
        f"instance-id: {job.instance_id}\nlocal-hostname: {job.hostname}\n".encode()
    )
    files["user-data"] = _user_data(site.files.get("user-data"))
    files["job.sh"] = job.script
    # Sourced by the guest: any text survives the shell's own quoting.
    files["args"] = _text(f"set -- {shlex.join(job.args)}\n")
    files["environment"] = _text(
        "".join(
            f"export {name}={shlex.quote(value)}\n"
            for name, value in sorted(job.environment.items())
        )
    )
    if job.context:
        files["job-context.sh"] = job.context
    if job.share:
        files["share"] = _text(f"{job.share}\n")
    return files


def opennebula_files_of(site: SitePart, job: JobPart) -> dict[str, bytes]:
    """The files of the disc labelled ``CONTEXT``: variables, and the runner, which finds the job
    on the other disc. https://docs.opennebula.io, "Open Cloud Contextualization"."""
    runner = base64.b64encode(RUNNER.encode()).decode()
    ours = f"SET_HOSTNAME={shlex.quote(job.hostname)}\nSTART_SCRIPT_BASE64='{runner}'\n"
    return {"context.sh": site.files.get("context.sh", b"").rstrip() + b"\n" + ours.encode()}


def write_disc(
    path: Path,
    files: Mapping[str, bytes],
    *,
    label: str = LABEL,
    given: Mapping[str, Path] | None = None,
) -> None:
    """Write an ISO 9660 image with Joliet and Rock Ridge names. ``given``: inputs of the job, by
    name, too large to be held in memory. Blocks: use a worker thread."""
    # Slow to import, and only a launch needs it.
    import pycdlib  # noqa: PLC0415

    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=label)
    with contextlib.ExitStack() as stack:
        stack.callback(iso.close)
        contents: dict[str, tuple[BinaryIO, int]] = {
            name: (io.BytesIO(data), len(data)) for name, data in files.items()
        }
        for name, file in (given or {}).items():
            opened = stack.enter_context(file.open("rb"))
            contents[_NAMES_OF_INPUTS[name]] = (opened, file.stat().st_size)
        for number, (name, (stream, size)) in enumerate(sorted(contents.items())):
            iso.add_fp(
                stream,
                size,
                f"/F{number:07d}.;1",
                rr_name=name,
                joliet_path=f"/{name}",
                file_mode=0o100555 if name.endswith(".sh") else 0o100444,
            )
        iso.write(str(path))


def _is_shell(script: bytes) -> bool:
    return not script.startswith(b"#!") or _SHELLS.match(script) is not None


def _text(text: str) -> bytes:
    # What came from a command line may hold bytes that are no UTF-8 (PEP 383).
    return text.encode("utf-8", "surrogateescape")


def _bounded(name: str, data: bytes) -> None:
    if len(data) > MAX_FILE_BYTES:
        raise OperatorError(f"{name} is larger than {MAX_FILE_BYTES} bytes", path=name)


def _user_data(of_site: bytes | None) -> bytes:
    """The runner; after the site's own user-data, as cloud-init's multi-part archive."""
    if of_site is None:
        return RUNNER.encode()
    parts = ((b"text/plain", of_site), (b"text/x-shellscript", RUNNER.encode()))
    lines = [
        b"MIME-Version: 1.0",
        f'Content-Type: multipart/mixed; boundary="{_BOUNDARY}"'.encode(),
        b"",
    ]
    for kind, body in parts:
        lines += [
            f"--{_BOUNDARY}".encode(),
            b"Content-Type: " + kind + b'; charset="utf-8"',
            b"Content-Transfer-Encoding: 8bit",
            b"",
            body,
        ]
    return b"\n".join([*lines, f"--{_BOUNDARY}--".encode(), b""])
