"""What of a job's environment means something to its guest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from distrib.errors import OperatorError

CONTEXT_VARIABLE: Final = "VM_CONTEXT"
"""A job's own script for its guest, a path on the node: ``qsub -v VM_CONTEXT=$HOME/ready.sh``."""

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


def guest_context(environ: Mapping[str, str]) -> list[str]:
    """``--context FILE``, where the job has such a script. Called as the job's user.

    Raises OperatorError where it cannot be read here: no other node need be tried."""
    text = environ.get(CONTEXT_VARIABLE)
    if not text:
        return []
    try:
        with Path(text).open("rb"):
            return ["--context", text]
    except OSError as error:
        raise OperatorError(
            f"{CONTEXT_VARIABLE}={text}: {error.strerror}", hint="a script that every node can read"
        ) from None
