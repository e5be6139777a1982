"""No host keys of an SSH server: all guests of the image would be the same host."""

from __future__ import annotations

import re

from distrib.inspection.checks.subject import Finding, Subject, in_all_parts
from distrib.inspection.readers.tree import Kind, Tree

_PLACES = (
    ("/etc/ssh", re.compile(r"ssh_host_.*key.*|.*_host_key.*", re.DOTALL)),
    ("/etc/dropbear", re.compile(r".*host_key.*", re.DOTALL)),
    ("/etc", re.compile(r"ssh_host_.*key.*", re.DOTALL)),
)


class SshHostKeys:
    """``ssh-host-keys``."""

    name = "ssh-host-keys"

    async def look(self, subject: Subject) -> Finding:
        return await in_all_parts(
            subject, _keys, nothing="no file system with /etc", clean="no host keys"
        )


async def _keys(tree: Tree) -> list[str] | None:
    etc = await tree.find("/etc")
    if etc is None or etc.kind is not Kind.FOLDER:
        return None
    return [
        f"{folder}/{entry.name}"
        for folder, names in _PLACES
        for entry in await tree.entries(folder)
        if names.fullmatch(entry.name) and not entry.name.endswith(".pub")
    ]
