"""What submit.lua asks: ``query SOCKET IMAGE USER`` prints one line, whatever the agent does.

``ok FEATURE`` (approved for that user, and on its way now), ``no REASON``, ``away REASON``.
A program of its own, without the command line's libraries: slurmctld waits for it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from agent.hooks.fault import of_node
from agent.hooks.slurm.names import feature
from agent.socket.client import ask
from distrib.errors import DistribError

ANSWER_S = 1.5


def answer(socket: Path, image: str, user: str) -> str:
    """The line, without its end."""
    try:
        told = ask(socket, "want", timeout_s=ANSWER_S, image=image, user=user)
    except DistribError as error:
        hint = f" ({error.hint})" if error.hint else ""
        word = "away" if of_node(error) else "no"
        return " ".join(f"{word} {error.message}{hint}".split())[:500]
    _, at, version = image.partition("@")
    return f"ok {feature(told['identifier'] + at + version)}"


if __name__ == "__main__":
    sys.stdout.write(answer(Path(sys.argv[1]), sys.argv[2], sys.argv[3]) + "\n")
