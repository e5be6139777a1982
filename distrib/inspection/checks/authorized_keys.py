"""Nobody's key opens the guest: no ``authorized_keys`` of root or of any home directory."""

from __future__ import annotations

from distrib.inspection.checks.subject import Finding, Subject, in_all_parts
from distrib.inspection.readers.tree import Kind, NotReadable, Tree

_FILES = (".ssh/authorized_keys", ".ssh/authorized_keys2")
_OF_SITE = ("/etc/ssh/authorized_keys", "/etc/dropbear/authorized_keys")
_FOLDERS_OF_HOMES = ("/home", "/var/home", "/export/home")
_HOMES_MAX = 500


class AuthorizedKeys:
    """``authorized-keys``."""

    name = "authorized-keys"

    async def look(self, subject: Subject) -> Finding:
        return await in_all_parts(
            subject, _keys, nothing="no file system", clean="no authorized keys"
        )


async def _keys(tree: Tree) -> list[str]:
    homes = await _homes(tree)
    if len(homes) > _HOMES_MAX:
        raise NotReadable(f"more than {_HOMES_MAX} home directories")
    files = [f"{home.rstrip('/')}/{name}" for home in homes for name in _FILES]
    for place in _OF_SITE:
        files += [f"{place}/{one.name}" for one in await tree.entries(place)] or [place]
    return [file for file in files if await _holds_keys(tree, file)]


async def _homes(tree: Tree) -> list[str]:
    """Also those of ``/etc/passwd``; and a file system may be one of homes only, or one home."""
    homes = {"/", "/root"}
    for place in _FOLDERS_OF_HOMES:
        homes |= {f"{place}/{one.name}" for one in await tree.entries(place)}
    passwd = await tree.content("/etc/passwd")
    if passwd is None:
        homes |= {f"/{one.name}" for one in await tree.entries("/") if one.kind is Kind.FOLDER}
    for row in (passwd or b"").decode(errors="surrogateescape").splitlines():
        fields = row.split(":")
        if len(fields) == 7 and fields[5].startswith("/"):
            homes.add(fields[5])
    return sorted(homes)


async def _holds_keys(tree: Tree, file: str) -> bool:
    content = await tree.content(file)
    rows = (content or b"").splitlines()
    return any(row.strip() and not row.lstrip().startswith(b"#") for row in rows)
