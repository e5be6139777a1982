"""Which variables of a job mean something in its guest too. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,100}")
_OF_HOST: Final = re.compile(
    r"PATH|HOME|SHELL|PWD|OLDPWD|TMP|TMPDIR|TEMP|TERM|SHLVL|_|ENV|IFS|HOSTNAME|MAIL|LD_.*|PYTHON.*"
    r"|PERL.*|BASH.*|DISPLAY|XAUTHORITY|XDG_.*|SLURM_CONF|SLURM_JWT|LSF_.*DIR|DISTRIB_.*"
    r"|_CONDOR_(?:JOB_AD|MACHINE_AD|SCRATCH_DIR|WRAPPER_ERROR_FILE|CREDS|CHIRP_CONFIG|BIN)"
)
"""What is true on the host only."""


def guest_environment(environ: Mapping[str, str]) -> Iterator[str]:
    """``--env NAME=VALUE`` for all that goes along."""
    for name, value in environ.items():
        if _VARIABLE.fullmatch(name) and not _OF_HOST.fullmatch(name):
            yield "--env"
            yield f"{name}={value}"
