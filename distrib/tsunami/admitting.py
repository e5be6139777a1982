"""Lines of ``authorized_keys`` that limit a key to one command, kept as a set of ours in the file.

Format: sshd(8), AUTHORIZED_KEYS FILE FORMAT. Ours are told from others by their comment, the last
word of the line; others are never touched.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from distrib.errors import NotFound, OperatorError, StorageFailed

KEYS_MAX: Final = 64
_AS_IT_IS: Final = "surrogateescape"

_KEY = re.compile(
    r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)|sk-[a-z0-9@.-]+) [A-Za-z0-9+/]+=*"
)


def limited(public_key: str, words: Sequence[str], *, comment: str, authority: bool = False) -> str:
    """The line that lets a key run the command ``words`` and nothing else.

    Raises OperatorError for what is no public key, and words that cannot be quoted."""
    found = _KEY.match(public_key.strip())
    if found is None:
        raise OperatorError("not a public key", hint="one line of a .pub file")
    command = shlex.join(words)
    if any(char in command for char in '"\\\n'):
        raise OperatorError(f"{command}: cannot be quoted", hint="use paths without quotes")
    options = ["cert-authority"] if authority else []
    options += ["restrict", f'command="{command}"']
    return f"{','.join(options)} {found[0]} {comment}"


def install(file: Path, lines: Sequence[str], *, comment: str) -> None:
    """Have these lines of ours in an ``authorized_keys`` file, and no others of ours.

    Lines of others stay. Raises StorageFailed; OperatorError for a link, which would become a file
    that nobody else keeps."""
    try:
        if file.is_symlink():
            raise OperatorError(f"{file}: is a link", hint=f"name {file.resolve()} itself")
        # Remarks of others may be in any encoding.
        before = file.read_bytes().decode("utf-8", _AS_IT_IS).split("\n") if file.exists() else []
        if before and not before[-1]:
            before.pop()
        kept = [line for line in before if line.split()[-1:] != [comment]]
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = file.with_name(f".{file.name}.distrib")
        fresh.unlink(missing_ok=True)
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8", errors=_AS_IT_IS, newline="") as stream:
            stream.write("".join(f"{line}\n" for line in (*kept, *lines)))
            if file.exists():
                os.fchown(fd, file.stat().st_uid, file.stat().st_gid)
                os.fchmod(fd, file.stat().st_mode & 0o777)
            stream.flush()
            os.fsync(fd)
        fresh.replace(file)
    except OSError as error:
        raise StorageFailed(f"{file}: {error.strerror}", hint="check its directory") from None


def read_public_keys(file: Path) -> list[str]:
    """The keys of a .pub file, one a line, ``#`` before remarks. Raises NotFound, OperatorError."""
    try:
        text = file.read_text("utf-8", errors="replace")
    except OSError as error:
        raise NotFound(f"{file}: {error.strerror}", hint="name a .pub file") from None
    found = [line for raw in text.splitlines() if (line := raw.strip()) and line[0] != "#"]
    if not 0 < len(found) <= KEYS_MAX or not all(map(_KEY.match, found)):
        raise OperatorError(f"{file}: not a public key", hint="lines of .pub files")
    return found
