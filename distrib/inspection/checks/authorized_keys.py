"""Nobody's key opens the guest: no ``authorized_keys`` of root or of any home directory."""

from __future__ import annotations

from distrib.inspection.checks.subject import Finding, Subject, in_all_parts
from distrib.inspection.readers.tree import Kind, NotReadable, Tree
from distrib.inspection.sandbox import ToolFailed

_FILES = (".ssh/authorized_keys", ".ssh/authorized_keys2")
_OF_SITE = ("/etc/ssh/authorized_keys", "/etc/dropbear/authorized_keys")
_FOLDERS_OF_HOMES = ("/home", "/var/home", "/export/home")
_HOMES_MAX = 1000


class AuthorizedKeys:
    """``authorized-keys``."""

    name = "authorized-keys"

    async def look(self, subject: Subject) -> Finding:
        homes = await _homes_of_users(subject)

        async def keys(tree: Tree) -> list[str]:
            return await _keys(tree, homes)

        return await in_all_parts(
            subject, keys, nothing="no file system", clean="no authorized keys"
        )


async def _homes_of_users(subject: Subject) -> set[str]:
    """Those of every ``/etc/passwd``, and what they are where a part of them is mounted."""
    homes = set()
    for part in subject.parts:
        try:
            passwd = None if part.tree is None else await part.tree.content("/etc/passwd")
        except (NotReadable, ToolFailed):
            continue  # The same is found, and told, where the keys are looked for.
        for row in (passwd or b"").decode(errors="surrogateescape").splitlines():
            fields = row.split(":")
            if len(fields) == 7 and fields[5].startswith("/"):
                words = [word for word in fields[5].split("/") if word]
                homes |= {"/" + "/".join(words[start:]) for start in range(len(words))}
    return homes


async def _keys(tree: Tree, homes_of_users: set[str]) -> list[str]:
    homes = sorted(await _homes(tree) | homes_of_users)
    if len(homes) > _HOMES_MAX:
        raise NotReadable(f"more than {_HOMES_MAX} home directories")
    files = [f"{home.rstrip('/')}/{name}" for home in homes for name in _FILES]
    for place in _OF_SITE:
        files += [f"{place}/{one.name}" for one in await tree.entries(place)] or [place]
    return [file for file in files if await _holds_keys(tree, file)]


async def _homes(tree: Tree) -> set[str]:
    """Those in the usual places; and a file system may be one of homes only, or one home."""
    homes = {"/", "/root"}
    for place in _FOLDERS_OF_HOMES:
        homes |= {f"{place}/{one.name}" for one in await tree.entries(place)}
    if await tree.content("/etc/passwd") is None:
        homes |= {f"/{one.name}" for one in await tree.entries("/") if one.kind is Kind.FOLDER}
    return homes


async def _holds_keys(tree: Tree, file: str) -> bool:
    content = await tree.content(file)
    rows = (content or b"").splitlines()
    return any(row.strip() and not row.lstrip().startswith(b"#") for row in rows)
