"""Nobody has a password, and nobody needs none: see shadow(5), passwd(5)."""

from __future__ import annotations

from distrib.inspection.checks.subject import Finding, Subject, in_all_parts
from distrib.inspection.readers.tree import Kind, Tree

_SHADOWS = ("/etc/shadow", "/etc/shadow-")
_PASSWDS = ("/etc/passwd", "/etc/passwd-")
_NO_PASSWORD = frozenset({"*", "!", "!!", "!*", "*LK*", "x", "*NP*"})


class ShadowPasswords:
    """``shadow-passwords``."""

    name = "shadow-passwords"

    async def look(self, subject: Subject) -> Finding:
        return await in_all_parts(
            subject, _passwords, nothing="no file system with /etc", clean="no passwords"
        )


async def _passwords(tree: Tree) -> list[str] | None:
    etc = await tree.find("/etc")
    if etc is None or etc.kind is not Kind.FOLDER:
        return None
    faults = []
    for file in (*_SHADOWS, *_PASSWDS):
        content = await tree.content(file) or b""
        for row in content.decode(errors="surrogateescape").splitlines():
            user, separator, rest = row.partition(":")
            if not separator or not user or user.startswith("#"):
                continue
            password = rest.partition(":")[0]
            if password == "":
                faults.append(f"{file}: {user} has an empty password")
            elif password not in _NO_PASSWORD:
                faults.append(f"{file}: {user} has a password")
    return faults
