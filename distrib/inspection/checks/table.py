"""The checks that come with distrib."""

from __future__ import annotations

from distrib.inspection.checks.age import Age
from distrib.inspection.checks.authorized_keys import AuthorizedKeys
from distrib.inspection.checks.partition_table import PartitionTable
from distrib.inspection.checks.shadow_passwords import ShadowPasswords
from distrib.inspection.checks.ssh_host_keys import SshHostKeys
from distrib.inspection.checks.subject import Check

BUILT_IN: tuple[Check, ...] = (
    PartitionTable(),
    SshHostKeys(),
    AuthorizedKeys(),
    ShadowPasswords(),
    Age(),
)
